"""What the commands on a tenant's program versions have in common: finding them, and saying what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import typer

from autoopt_pipeline.artifacts.moves import Watch, rolled_back, standing, watch_since
from autoopt_pipeline.artifacts.store import Manifest, ModuleArtifacts, Move, Program, Withdrawal, modules_of
from autoopt_pipeline.cli.completion import complete_module
from autoopt_pipeline.cli.context import connections, nearest, unknown_tenant
from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.registry import get_module, module_names
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.tenant_id import validate_tenant_id

if TYPE_CHECKING:
    import dspy

ModuleName = Annotated[str, typer.Argument(help="Module, e.g. routing.", autocompletion=complete_module)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Full = Annotated[bool, typer.Option("--full", help="Cut nothing short.")]

BASELINE = "baseline"
"""What a person calls the program that serves where no version is active."""


@dataclass(frozen=True)
class Programs:
    """One tenant's module as it was stored at one moment. `damaged` are versions whose manifests cannot be read."""

    artifacts: ModuleArtifacts
    manifests: Sequence[Manifest]
    damaged: dict[str, InvalidArtifact]
    moves: Sequence[Move]

    @property
    def name(self) -> str:
        return f"{self.artifacts.tenant_id}/{self.artifacts.module}"

    @property
    def active(self) -> str | None:
        """The active version; None where the baseline serves."""
        return self.moves[-1].to if self.moves else None

    @cached_property
    def watch(self) -> Watch | None:
        """The watch that is under way."""
        return watch_since(self.moves[-1] if self.moves else None)

    @cached_property
    def rolled_back(self) -> dict[str, Move]:
        return rolled_back(self.moves)

    @cached_property
    def _trial_verdicts(self) -> dict[str, str]:
        return {step.version: step.verdict for step in self.artifacts.trial_steps()}

    def verdict(self, manifest: Manifest) -> str:
        """The last word on a version: of its trial, where it had one; `canary` where it was only that, and `stale`
        where its promotion came too late."""
        verdict = self._trial_verdicts.get(manifest.version, manifest.verdict)
        # The verdict is written before the move, which another run may have made impossible.
        if verdict != "promoted" or self.was_active(manifest.version):
            return verdict
        return "canary" if any(manifest.version in (move.canary or ()) for move in self.moves) else "stale"

    def was_active(self, version: str) -> bool:
        return any(move.to == version for move in self.moves)

    def previous(self) -> str | None:
        """What was active before: the newest version that was not withdrawn, or the baseline. Of a canary, what is.

        Raises `InvalidArtifact` where the baseline is active, for nothing comes before it.
        """
        if self.watch and self.watch.is_canary:
            return self.active
        for version in reversed(standing(self.moves)[:-1]):
            if version is None or self.withdrawal(version) is None:
                return version
        raise InvalidArtifact(
            f"{self.name}: the baseline is active, and nothing comes before it",
            f"name a version; 'autoopt versions {self.artifacts.tenant_id} {self.artifacts.module}' lists them",
        )

    def withdrawal(self, version: str) -> Withdrawal | None:
        return self.artifacts.withdrawal(version)

    def manifest(self, version: str) -> Manifest:
        """A version's manifest. Raises `InvalidArtifact` when it is damaged, or naming the nearest when unknown."""
        for manifest in self.manifests:
            if manifest.version == version:
                return manifest
        if version in self.damaged:
            raise self.damaged[version]
        hint = nearest(version, [manifest.version for manifest in self.manifests])
        command = f"autoopt versions {self.artifacts.tenant_id} {self.artifacts.module}"
        raise InvalidArtifact(f"{self.name}: version {version[:60]!r} does not exist", f"{hint}'{command}' lists them")

    def named(self, text: str) -> str | None:
        """The version that a person names; None for the baseline. Raises `InvalidArtifact` as `manifest`."""
        return None if text == BASELINE else self.manifest(text).version


def open_programs(tenant: str, module: str) -> Programs:
    """What is stored of a tenant's module. Raises `UnknownTenant` or `UnknownModule`, naming the nearest."""
    parts = connections()
    files = parts.files
    validate_tenant_id(tenant)
    # The programs of a module that is no longer installed can still be looked at.
    if module not in module_names() and all(each.module != module for each in modules_of(files, tenant)):
        get_module(module)
    artifacts = ModuleArtifacts(files, tenant, module)
    manifests, damaged = artifacts.survey()
    programs = Programs(artifacts, manifests, damaged, artifacts.moves())
    if not (manifests or damaged or programs.moves):
        known = parts.configs.current()
        if tenant not in known:
            raise unknown_tenant(tenant, known)
    return programs


def built(stored: Program | None, module: str, labels: Sequence[str]) -> "dspy.Module":
    """A stored program (None: the module's baseline), ready to be asked or compared, with these labels.

    Raises `InvalidArtifact` when it was made for another signature, and so can serve nobody.
    """
    from autoopt_pipeline.artifacts.programs import unpack

    spec = get_module(module)
    choices = spec.labels or tuple(Label(name) for name in labels)
    return spec.build_program(choices) if stored is None else unpack(spec, choices, stored)


def percent(score: float | None) -> str:
    return "?" if score is None else f"{100 * score:.1f}"


def one_line(text: str, *, full: bool, length: int = 160) -> str:
    """Text of a user or a model, kept to its line, and to a length unless it is wanted in full."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if full or len(line) <= length else f"{line[: length - 1]}…"
