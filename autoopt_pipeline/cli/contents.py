"""`autoopt show` and `autoopt diff`: the contents of a version, its origin, and its differences from another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.cli.options import Full, Json, ModuleName, open_programs
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.cli.versions import header, standing_as_dict
from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.module_versions import (
    ModuleVersions,
    cost_of,
    how_it_ended,
    lm_of,
    predictors_of,
    routers_of,
)
from autoopt_pipeline.registry.program_cost import CANDIDATE, describe_costs, read_costs
from autoopt_pipeline.registry.records import Manifest
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.text import listed_counts, listed_unread, one_line, percent

if TYPE_CHECKING:
    from autoopt_pipeline.optimization.report import Change

_DEMOS_SHOWN = 5

# Fields of a demo besides its query and its answer.
_HIDDEN_FIELDS = {"reasoning", "confidence", "augmented"}


def show(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str | None, typer.Argument(help="Version of 'autoopt versions' [default: active].")] = None,
    full: Full = False,
    json: Json = False,
) -> None:
    """Show a version's origin, its scores, and its instructions and demos."""
    programs = open_programs(tenant, module)
    name = version or programs.active
    if name is None:
        raise InvalidArtifact(
            f"{programs.name}: no version is active, the module's baseline serves",
            f"name a version that 'autoopt versions {tenant} {module}' lists",
        )
    manifest = programs.manifest(name)
    # A withdrawn version has only its manifest left.
    stored = None if programs.withdrawal(name) else programs.artifacts.load(name)
    if json:
        console.print_json(
            data={
                **header(programs),
                "version": name,
                "verdict": programs.verdict(manifest),
                **standing_as_dict(programs, name),
                "manifest": manifest.model_dump(mode="json"),
                "local_routers": routers_of(stored) if stored else None,
                "predictors": predictors_of(stored) if stored else None,
            }
        )
        return
    last = programs.last_event(name)
    console.print(f"{programs.name}  {name}  {last.what if last else ''}".rstrip())
    routers = [("local router", f"{of}: {text}") for of, text in (routers_of(stored) if stored else {}).items()]
    for title, text in (*_describe(programs, manifest, full), *routers):
        console.print(f"{title:<19}  {escape(text)}")
    if manifest.tried:
        _print_candidates(manifest)
    for predictor, content in (predictors_of(stored) if stored else {}).items():
        _print_predictor(predictor, content, full)


def diff(
    tenant: TenantId,
    module: ModuleName,
    version_a: Annotated[
        str | None, typer.Argument(help=f"A version, or '{BASELINE}' [default: the previously active one].")
    ] = None,
    version_b: Annotated[str | None, typer.Argument(help="The other version [default: the active one].")] = None,
    full: Full = False,
    json: Json = False,
) -> None:
    """Show how two versions differ: instructions, demos and scores.

    The baseline of a composed module is compared without the demos and instructions of its parts.
    """
    from autoopt_pipeline.optimization.report import changes_of_versions

    programs = open_programs(tenant, module)
    before = programs.previous() if version_a is None else programs.named(version_a)
    after = programs.active if version_b is None else programs.named(version_b)
    changes = changes_of_versions(programs, before, after)
    sides = [(name, programs.manifest(name) if name else None) for name in (before, after)]
    if json:
        scores = [
            {
                "incumbent_score": manifest and manifest.incumbent_score,
                "candidate_score": manifest and manifest.candidate_score,
                "language_model": manifest and manifest.lm,
                "cost": manifest.costs[CANDIDATE].model_dump() if manifest and CANDIDATE in manifest.costs else None,
            }
            for _, manifest in sides
        ]
        console.print_json(
            data={
                **header(programs),
                "from": {"version": before, **scores[0]},
                "to": {"version": after, **scores[1]},
                "changes": [asdict(change) for change in changes],
            }
        )
        return
    console.print(f"{programs.name}: {before or BASELINE} -> {after or BASELINE}")
    for name, manifest in sides:
        if manifest:
            change_of_score = f"{percent(manifest.incumbent_score)} -> {percent(manifest.candidate_score)} %"
            costs = describe_costs({CANDIDATE: manifest.costs[CANDIDATE]}) if CANDIDATE in manifest.costs else ""
            text = f"{name}: {programs.verdict(manifest)}, {change_of_score} on its own holdout with {lm_of(manifest)}"
            console.print(f"{text}; {costs}" if costs else text)
    for change in changes:
        _print_change(change, full)


def _describe(programs: ModuleVersions, manifest: Manifest, full: bool) -> Iterator[tuple[str, str]]:
    """A manifest as titles and texts for people."""
    yield "verdict", programs.verdict(manifest)
    yield "reason", one_line(manifest.reason, full=full, length=400)
    if withdrawn := programs.withdrawal(manifest.version):
        yield "withdrawn", f"on {withdrawn.at:%Y-%m-%d} by {withdrawn.actor}: {withdrawn.reason}; its program is gone"
    if declined := programs.declined(manifest.version):
        yield "declined", f"on {declined.at:%Y-%m-%d} by {declined.actor}: {declined.reason}"
    if left := programs.rolled_back.get(manifest.version):
        yield "rolled back", f"on {left.at:%Y-%m-%d} by {left.actor}: {left.reason}"
    for result in programs.artifacts.rollout_results():
        if manifest.version in (result.version, result.against):
            yield "in production", one_line(how_it_ended(result), full=full, length=400)
    yield "score", f"{percent(manifest.incumbent_score)} -> {percent(manifest.candidate_score)} %"
    yield "compared with", manifest.parent or BASELINE
    if manifest.gate:
        yield "gate", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in manifest.gate.items())
    yield "labels that decided", listed_counts(manifest.judged_by) or "none"
    yield "window", f"{manifest.window_start:%Y-%m-%d %H:%M:%S} to {manifest.window_end:%Y-%m-%d %H:%M:%S} UTC"
    yield "examples", listed_counts(manifest.examples) or "none"
    yield "their labels", listed_counts(manifest.provenance) or "none"
    yield "made", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC by run {manifest.run_id}"
    yield "optimizer", f"{manifest.optimizer}, seed {manifest.seed}"
    teacher = f", taught by {manifest.teacher_lm}" if manifest.teacher_lm else ""
    teacher += f", judged by {manifest.judge_lm} and people" if manifest.judge_lm else ""
    yield "language model", f"{lm_of(manifest)}{teacher}"
    if manifest.lm_settings:
        yield "its settings", ", ".join(f"{name} {value}" for name, value in manifest.lm_settings.items())
    yield "answer format", manifest.answer_format
    if manifest.unread:
        yield "answers not read", listed_unread(manifest.unread)
    if costs := describe_costs(manifest.costs):
        yield "cost of decisions", costs
    yield "cost of the run", cost_of(manifest)
    yield "packages", ", ".join(f"{name} {version}" for name, version in manifest.packages.items()) or "?"


def _print_candidates(manifest: Manifest) -> None:
    """Print the candidates of the race, their scores and LM calls."""
    rows = []
    for candidate in manifest.tried:
        dropped = candidate.get("dropped_after")
        rows.append(
            (
                escape(str(candidate.get("optimizer", "?"))),
                f"{percent(candidate.get('dev_score'))} %",
                *(str(candidate.get(name, "?")) for name in ("judged_on", "making_calls", "judging_calls")),
                str(read_costs({CANDIDATE: candidate.get("cost")}).get(CANDIDATE, "?")),
                "finalist" if dropped is None else f"dropped after {dropped}",
            )
        )
    print_table(
        ("candidate", "score on dev", "dev examples", "calls to make", "calls to judge", "a decision costs", ""), rows
    )


def _print_predictor(name: str, content: Mapping[str, Any], full: bool) -> None:
    demos: Sequence[Mapping[str, Any]] = content["demos"]
    console.print(f"\n[bold]{escape(name)}[/bold]: {len(demos)} demos")
    lines = content["instructions"].splitlines()
    for line in lines if full else lines[:_DEMOS_SHOWN]:
        console.print(f"  {escape(one_line(line, full=full))}")
    if len(lines) > _DEMOS_SHOWN and not full:
        console.print(f"  … {len(lines) - _DEMOS_SHOWN} more lines; --full shows them")
    lines_of_demos = [
        "; ".join(f"{key}: {value}" for key, value in demo.items() if key not in _HIDDEN_FIELDS) for demo in demos
    ]
    _print_some("-", lines_of_demos, full)


def _print_change(change: "Change", full: bool) -> None:
    if not (change.added or change.dropped or change.instructions):
        console.print(f"\n[bold]{escape(change.predictor)}[/bold]: the same")
        return
    console.print(f"\n[bold]{escape(change.predictor)}[/bold]: {change.summary}")
    _print_some("+", change.added, full)
    _print_some("-", change.dropped, full)
    if change.instructions:
        console.print("  instructions:")
        for line in change.instructions.splitlines():
            console.print(f"  {escape(one_line(line, full=full))}")


def _print_some(sign: str, lines: Sequence[str], full: bool) -> None:
    for line in lines if full else lines[:_DEMOS_SHOWN]:
        console.print(f"  {sign} {escape(one_line(line, full=full))}")
    if len(lines) > _DEMOS_SHOWN and not full:
        console.print(f"  {sign} … {len(lines) - _DEMOS_SHOWN} more; --full shows them")
