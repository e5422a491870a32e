"""A demo keeps the span that it came from, in the manifest and not in the program."""

from dataclasses import replace
from pathlib import Path

import pytest

from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.optimization.optimizers import bootstrappers, demo_pickers, improvers
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import SOURCE, compose, deserialize, serialize
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.labeled_requests import LABELS as AGENTS
from tests.support.labeled_requests import ROUTING, UNIFIED, context_of, stand_in
from tests.support.stored_programs import LABELS, made_program, store


def shown(stored: Program) -> dict[str, list[str]]:
    return {name: [demo["query"] for demo in predictor.demos] for name, predictor in stored.predictors.items()}


@pytest.mark.parametrize("spec", [ROUTING, UNIFIED], ids=["routing", "unified"])
def test_labelled_and_bootstrapped_demos_name_the_span_of_the_example_that_they_show(spec: ModuleSpec) -> None:
    context = context_of(spec)
    queries = {example.span_id: example.query for example in context.train}
    for optimizer in [*list(demo_pickers(context))[1:], *list(bootstrappers(context))[:2]]:
        stored = serialize(spec, "acme", AGENTS, optimizer.compile())
        named = {name: [queries[str(source)] for source in sources] for name, sources in stored.demo_sources.items()}
        assert named == shown(stored), optimizer.name
        assert all(named.values())
        assert SOURCE not in stored.encode().decode()


@pytest.mark.parametrize("improver", ["gepa", "miprov2"])
def test_a_search_for_instructions_leaves_demos_their_sources(improver: str) -> None:
    model = replace(stand_in(), is_stand_in=False)
    context = replace(context_of(ROUTING, train=120), lm=model, teacher=model)
    *_, leader = (optimizer.compile() for optimizer in demo_pickers(context))
    (search,) = (each for each in improvers(context) if each.name == improver)
    before, after = (serialize(ROUTING, "acme", AGENTS, each) for each in (leader, search.compile(leader)))
    assert after.demo_sources == before.demo_sources
    assert all(before.demo_sources["decide"])


def test_a_bootstrapped_demo_that_quotes_another_example_has_no_known_source() -> None:
    spec = replace(ROUTING, program="tests.support.unusual_parts:Quoting")
    context = context_of(ROUTING, bootstrapped=9)
    train = [replace(example, right={"agent": "x"}) for example in context.train]
    context = replace(context, spec=spec, start=spec.build_program(AGENTS), train=train)
    stored = serialize(spec, "acme", AGENTS, next(iter(bootstrappers(context))).compile())
    demos = list(zip(stored.predictors["decide"].demos, stored.demo_sources["decide"], strict=True))
    quoting = [source for demo, source in demos if demo.get("reasoning", "").startswith("like")]
    others = [source for demo, source in demos if not demo.get("reasoning", "").startswith("like")]
    assert quoting
    assert set(quoting) == {None}
    assert None not in others


def test_the_parts_of_a_composed_module_bring_the_sources_of_their_demos(tmp_path: Path) -> None:
    artifacts = VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")
    version = store(artifacts, with_sources(made_program("acme", demos=["one", "two"]), ["1", None]))
    part = artifacts.load(version)
    assert part.demo_sources == {"decide": ["1", None]}
    stored = serialize(UNIFIED, "acme", LABELS, compose(UNIFIED, LABELS, {"routing": part}))
    assert stored.demo_sources == {"modality.decide": [], "routing.decide": ["1", None], "workflow.decide": []}
    assert SOURCE not in stored.encode().decode()


def test_demos_that_are_left_out_take_their_sources_with_them() -> None:
    stored = with_sources(made_program("acme", demos=["one", "two", "three"]), ["1", "2", "3"])
    stored.state["decide"]["demos"][1]["agent"] = "gone_agent"
    program = deserialize(ROUTING, LABELS, stored)
    assert serialize(ROUTING, "acme", LABELS, program).demo_sources == {"decide": ["1", "3"]}


@pytest.mark.parametrize("sources", [{}, {"decide": ["1"]}, {"decide": ["1", "2", "3"]}])
def test_sources_that_do_not_fit_the_demos_are_unknown(sources: dict[str, list[str | None]]) -> None:
    stored = made_program("acme", demos=["one", "two"]).model_copy(update={"demo_sources": sources})
    program = deserialize(ROUTING, LABELS, stored)
    assert serialize(ROUTING, "acme", LABELS, program).demo_sources == {"decide": [None, None]}


def with_sources(program: Program, sources: list[str | None]) -> Program:
    return program.model_copy(update={"demo_sources": {"decide": sources}})
