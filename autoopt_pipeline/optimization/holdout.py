"""The held-out traces of a run: which are drawn for a comparison, and that no candidate has seen them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import dspy

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH
from autoopt_pipeline.evaluation.sequential_test_log import Draws, digests
from autoopt_pipeline.evaluation.split import HoldoutExample, Split, draw, newest
from autoopt_pipeline.modules.similarity import normalize_query, quotes
from autoopt_pipeline.modules.spec import Example, ExampleSet
from autoopt_pipeline.registry.serialization import demos_shown, queries_shown, traces_learnt


def drawn_traces(split: Split, draws: Draws, *, seed: str, without: frozenset[str]) -> list[HoldoutExample]:
    """Return new traces for one batch, without groups that have a query with one of these digests."""

    def is_new(held_out: HoldoutExample) -> bool:
        return not without or without.isdisjoint(digests(held_out.group))

    if draws == "all":
        return draw(split, seed=seed, most=MAX_BATCH, usable=is_new)
    return list(newest(filter(is_new, split.holdout), MAX_BATCH))


def known_queries(built: ExampleSet, programs: Sequence[dspy.Module]) -> set[str]:
    """Return the queries that a program shows to the model, or that its local router learnt from."""
    learnt = {trace for program in programs for trace in traces_learnt(program)}
    shown = {query for program in programs for query in queries_shown(program)}
    return shown | {example.query for example in built.examples if example.trace_id in learnt}


def check_no_demo_is_held_out(program: dspy.Module, split: Split) -> None:
    """A demo of a training example shows no held-out query, because a query is on one side of the split. Others are
    compared by their words."""
    trained = {example.span_id for example in split.train}
    held_out = {query for judged in (*split.holdout, *split.guard, *split.drawable) for query in judged.group}
    others = {normalize_query(query) for source, query in demos_shown(program) if source not in trained}
    if leaked := held_out.intersection(others):
        raise InvalidArtifact(
            f"a candidate shows {len(leaked)} held-out queries to the model", "report this: it must not happen"
        )


def without_quoted(split: Split, *programs: dspy.Module) -> tuple[Split, list[str]]:
    """Remove queries from the holdout that a compared program's instructions quote: they cannot judge.

    Also returns notes for the report.
    """
    instructions = [predictor.signature.instructions for program in programs for predictor in program.predictors()]

    def unquoted(held_out: Sequence[HoldoutExample]) -> tuple[HoldoutExample, ...]:
        return tuple(
            judged
            for judged in held_out
            if not any(quotes(text, query) for query in judged.group for text in instructions)
        )

    usable = replace(
        split, holdout=unquoted(split.holdout), guard=unquoted(split.guard), drawable=unquoted(split.drawable)
    )
    if lost := len(split.holdout) + len(split.guard) - len(usable.holdout) - len(usable.guard):
        return usable, [f"{lost} held-out queries were left out because a program's instructions quote them"]
    return usable, []


def digest_of(examples: Sequence[Example]) -> str:
    rows = [[normalize_query(example.query), example.label] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
