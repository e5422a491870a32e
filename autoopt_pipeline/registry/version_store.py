"""The version store: programs per tenant and module, their transitions, ledger and tests.

    {root}/{tenant}/{module}/versions/{version}/{program.json, manifest.json}   written once, manifest last
    {root}/{tenant}/{module}/versions/{version}/withdrawn.json                  why its program was permanently deleted
    {root}/{tenant}/{module}/versions/{version}/declined.json                   why a person declined it
    {root}/{tenant}/{module}/transitions/{sequence}.json                        every change of the active version
    {root}/{tenant}/{module}/active.json                                        derived from the last transition
    {root}/_serving/                                                            see registry.serving_index
    {root}/{tenant}/{module}/ledger/{sequence}.json                             see evaluation.alpha_ledger
    {root}/{tenant}/{module}/sequential_tests/{sequence}.json                   see evaluation.sequential_test_log
    {root}/{tenant}/{module}/rollouts/, rollout_draws/                          see registry.rollout_records
    {root}/{tenant}/{module}/backtests/{time}.json                              see registry.backtests
    {root}/{tenant}/{module}/answers/{name}.json                                see optimization.answer_checkpoint
    {root}/{tenant}/{module}/replays/{version}.json                             see registry.replays

Transitions, ledger entries, draws and steps of sequential tests are created exclusively. If two writers act on the same
state, one of them fails.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from autoopt_pipeline.errors import ArtifactStoreUnavailable, AutooptError, InvalidArtifact, PromotionConflict
from autoopt_pipeline.registry.audit_log import record_action
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import (
    Active,
    Declined,
    LedgerEntry,
    Manifest,
    Pointer,
    Program,
    SequentialTestStep,
    StoredAnswer,
    Transition,
    Withdrawal,
    serving,
)
from autoopt_pipeline.registry.replays import ModelReplay, ReplayExample, ReplaySet, report_replay
from autoopt_pipeline.registry.rollout_records import RolloutDraw, RolloutResult, index_rollout
from autoopt_pipeline.registry.serving_index import entry_path
from autoopt_pipeline.registry.transitions import pointer_after
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenant_id import safe_name
from autoopt_pipeline.validation import first_error

Record = TypeVar("Record", bound=BaseModel)
Numbered = TypeVar("Numbered", Transition, "LedgerEntry", "SequentialTestStep", RolloutDraw, RolloutResult)

_NUMBERED = re.compile(r"[0-9]{8}\.json")

_DECLINED = "declined.json"


def _draws(rollout: int) -> str:
    """Return the folder of the draws for the rollout that this transition began."""
    return f"rollout_draws/{rollout:08d}"


def _now() -> datetime:
    return datetime.now(UTC)


class VersionStore:
    """The artifacts of one tenant's module. `clock` gives the time (UTC) of what is recorded."""

    def __init__(
        self, files: ObjectStore, tenant_id: str, module: str, *, clock: Callable[[], datetime] = _now
    ) -> None:
        self._files = files
        self._folder = f"{safe_name(tenant_id)}/{module}"
        self.tenant_id = tenant_id
        self.module = module
        self.clock = clock

    def save(self, program: Program, manifest: Manifest) -> None:
        """Store a version. The manifest is written last, because a version exists only with its manifest.

        Raises `InvalidArtifact` if the version was withdrawn, because its text must not be stored again.
        """
        folder = f"{self._folder}/versions/{manifest.version}"
        self._check_not_withdrawn(manifest.version)
        self._files.create(f"{folder}/program.json", program.encode())
        self._files.create(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode())

    def record_result(self, manifest: Manifest) -> None:
        """Replace a version's manifest by one with the result of its sequential test. Its program never changes."""
        path = f"{self._folder}/versions/{manifest.version}/manifest.json"
        self._files.replace(path, manifest.model_dump_json(indent=1).encode())

    def versions(self) -> list[Manifest]:
        """Return all complete versions, oldest first. Raises `InvalidArtifact` if a manifest is damaged."""
        manifests, damaged = self.list_versions()
        if damaged:
            raise next(iter(damaged.values()))
        return manifests

    def list_versions(self) -> tuple[list[Manifest], dict[str, InvalidArtifact]]:
        """Return the manifests of all complete versions, oldest first, and an error for each damaged one."""
        manifests: list[Manifest] = []
        damaged: dict[str, InvalidArtifact] = {}
        for name in self._files.names(f"{self._folder}/versions"):
            try:
                manifest = self.manifest(name)
            except InvalidArtifact as e:
                damaged[name] = e
            else:
                manifests += [manifest] if manifest else []
        return manifests, damaged

    def manifest(self, version: str) -> Manifest | None:
        """Return a version's manifest, or None without such a version. Raises `InvalidArtifact` if it is damaged."""
        path = f"versions/{version}/manifest.json"
        manifest = self._read(path, Manifest)
        if manifest and manifest.version != version:
            raise self._invalid(f"{path}: it is the manifest of {manifest.version}", "restore it from a backup")
        return manifest

    def load(self, version: str) -> Program:
        """Return a version's program. Raises `InvalidArtifact` if it is missing, withdrawn, damaged or foreign."""
        self._check_not_withdrawn(version)
        manifest = self.manifest(version)
        raw = self._files.read(f"{self._folder}/versions/{version}/program.json")
        if manifest is None or raw is None:
            raise self._invalid(f"version {version} does not exist", "list them with 'autoopt versions'")
        if hashlib.sha256(raw).hexdigest() != manifest.program_sha256:
            raise self._invalid(
                f"version {version} is damaged", "restore it from a backup, or activate another version"
            )
        program = self._parse(raw, Program, f"version {version}")
        if (program.tenant_id, program.module) != (self.tenant_id, self.module):
            raise self._invalid(
                f"version {version} belongs to {program.tenant_id}/{program.module}",
                "activate a version of this tenant's module",
            )
        return program.model_copy(
            update={"demo_sources": manifest.demo_sources, "router_sources": manifest.router_sources}
        )

    def iter_program_texts(self) -> Iterator[tuple[str, str]]:
        """Yield version and content of every file with a program, including unfinished files of killed writers."""
        for version in self._files.names(f"{self._folder}/versions"):
            for path in self._program_files(version):
                if (raw := self._files.read(path)) is not None:
                    yield version, raw.decode(errors="replace")

    def withdraw(self, version: str, *, actor: str, reason: str) -> None:
        """Permanently delete a version's program; its manifest stays. Make another version active first."""
        folder = f"{self._folder}/versions/{version}"
        withdrawal = Withdrawal(at=self.clock(), actor=actor, reason=reason)
        # The mark is written first, so that nobody loads the program of a withdrawal that was interrupted.
        self._files.create(f"{folder}/withdrawn.json", withdrawal.model_dump_json(indent=1).encode())
        for path in [*self._program_files(version), self._replay_path(version)]:
            self._files.delete(path)

    def withdrawal(self, version: str) -> Withdrawal | None:
        """Return why a version was withdrawn, or None if it was not."""
        return self._read(f"versions/{version}/withdrawn.json", Withdrawal)

    def decline(self, version: str, *, actor: str, reason: str) -> bool:
        """Record that a person declined a version. Return False if it was declined before; that record stays."""
        declined = Declined(at=self.clock(), actor=actor, reason=reason)
        path = f"{self._folder}/versions/{version}/{_DECLINED}"
        return self._files.create(path, declined.model_dump_json(indent=1).encode())

    def declined(self, version: str) -> Declined | None:
        """Return who declined a version and why, or None if nobody has."""
        return self._read(f"versions/{version}/{_DECLINED}", Declined)

    def active(self) -> Active | None:
        """Return the active version by the last transition, or None if the module's baseline serves.

        Updates `active.json` if a writer was killed before it could.
        """
        last = self.last_transition()
        if last is None:
            return None
        pointer = self._read("active.json", Pointer)
        if pointer is None or pointer.sequence < last.sequence:
            pointer = self._point_to(last)
        return pointer.active

    def transition(  # noqa: PLR0913 - keyword-only parts of one record
        self,
        to_version: str | None,
        *,
        expected: str | None,
        actor: str,
        reason: str,
        resets_alpha_budget: bool = True,
        canary: dict[str, float] | None = None,
        proving_alpha: float | None = None,
        after: Transition | None = None,
    ) -> Transition:
        """Make a version active, or the baseline (None). With `canary`, another version serves a fraction of requests.

        Raises `PromotionConflict` if the active version is not `expected`, or if `after` is given and is not the last
        transition. Raises `InvalidArtifact` as `load` does.
        """
        for version in serving(to_version, canary):
            self.load(version)
        if canary:
            # Written before the transition, so that the monitor finds the rollout even if this writer is killed.
            index_rollout(self._files, self.tenant_id, self.module)
        last = self.last_transition()
        current = last.to_version if last else None
        transition = Transition(
            sequence=last.sequence + 1 if last else 1,
            at=self.clock(),
            actor=actor,
            reason=reason,
            from_version=expected,
            to_version=to_version,
            resets_alpha_budget=resets_alpha_budget,
            canary=canary,
            proving_alpha=proving_alpha,
        )
        path = f"{self._folder}/transitions/{transition.sequence:08d}.json"
        overtaken = current != expected or (after is not None and last != after)
        if overtaken or not self._files.create(path, transition.model_dump_json(indent=1).encode()):
            raise PromotionConflict(
                f"{self.tenant_id}/{self.module}: the active version is no longer {expected or 'the baseline'}",
                "compare with the version that is active now",
            )
        self._point_to(transition)
        return transition

    def transitions(self) -> list[Transition]:
        """Return all transitions, oldest first."""
        return self._read_all("transitions", Transition)

    def last_transition(self) -> Transition | None:
        """Return the transition that defines what serves now, or None before the first one."""
        names = self._numbered("transitions")
        return self._read_numbered("transitions", names[-1], Transition) if names else None

    def record_action(self, what: str, *, actor: str, text: str) -> None:
        """Record in the audit log what a person has done to this module."""
        record_action(self._files, actor=actor, what=what, tenant_id=self.tenant_id, module=self.module, text=text)

    def keep_indexed(self, since: datetime) -> None:
        """Make sure that the index has the rollout that began at `since`."""
        index_rollout(self._files, self.tenant_id, self.module, at=since)

    def rollout_draws(self, rollout: Transition) -> list[RolloutDraw]:
        """Return the draws for the rollout that this transition began, oldest first."""
        return self._read_all(_draws(rollout.sequence), RolloutDraw)

    def add_rollout_draw(self, rollout: Transition, draw: RolloutDraw) -> bool:
        """Record a draw, and let the monitor analyze the rollout. Return False if another run took the same place."""
        path = f"{self._folder}/{_draws(rollout.sequence)}/{draw.sequence:08d}.json"
        if not self._files.create(path, draw.model_dump_json(indent=1).encode()):
            return False
        index_rollout(self._files, self.tenant_id, self.module, at=rollout.at, due=True)
        return True

    def rollout_results(self) -> list[RolloutResult]:
        """Return the results of all rollouts, oldest first."""
        return self._read_all("rollouts", RolloutResult)

    def add_rollout_result(self, result: RolloutResult) -> None:
        """Record how a rollout ended. An earlier result of the same rollout stays."""
        path = f"{self._folder}/rollouts/{result.sequence:08d}.json"
        self._files.create(path, result.model_dump_json(indent=1).encode())

    def ledger(self) -> list[LedgerEntry]:
        return self._read_all("ledger", LedgerEntry)

    def charge(self, entry: LedgerEntry) -> bool:
        """Record a charge in the ledger. Return False if another run took the same place."""
        path = f"{self._folder}/ledger/{entry.sequence:08d}.json"
        return self._files.create(path, entry.model_dump_json(indent=1).encode())

    def sequential_test(self) -> list[SequentialTestStep]:
        """Return the steps of the last sequential test, oldest first. Empty if there never was one."""
        steps: list[SequentialTestStep] = []
        for name in reversed(self._numbered("sequential_tests")):
            step = self._read_numbered("sequential_tests", name, SequentialTestStep)
            if step is None:
                continue
            if steps and step.version != steps[0].version:
                break
            steps.insert(0, step)
        return steps

    def last_sequential_test_step(self) -> int:
        """Return the number of the last step of any sequential test, or 0."""
        names = self._numbered("sequential_tests")
        return int(names[-1].removesuffix(".json")) if names else 0

    def sequential_test_steps(self) -> list[SequentialTestStep]:
        """Return the steps of all sequential tests, oldest first."""
        return self._read_all("sequential_tests", SequentialTestStep)

    def add_sequential_test_step(self, step: SequentialTestStep) -> bool:
        """Record a step of a sequential test. Return False if another run took the same place."""
        path = f"{self._folder}/sequential_tests/{step.sequence:08d}.json"
        return self._files.create(path, step.model_dump_json(indent=1).encode())

    def erase_drawn(self, trace_ids: Collection[str]) -> None:
        """Delete both programs' answers to these traces from all draws. Without them, a trace is a tie."""
        self._erase_drawn("sequential_tests", self.sequential_test_steps(), trace_ids)
        for rollout in self._files.names(f"{self._folder}/rollout_draws"):
            folder = f"rollout_draws/{rollout}"
            self._erase_drawn(folder, self._read_all(folder, RolloutDraw), trace_ids)

    def replay_set(self, version: str | None) -> ReplaySet | None:
        """Return what a version (None: the baseline) was asked before. Raises `InvalidArtifact` if it is damaged."""
        return self._read(f"replays/{version or BASELINE}.json", ReplaySet)

    def keep_replay_set(self, asked: ReplaySet) -> None:
        """Store what a version was asked, with its answers. It replaces what was stored before."""
        self._files.replace(self._replay_path(asked.version), asked.model_dump_json().encode())

    def erase_replayed(self, is_erased: Callable[[ReplayExample], bool]) -> None:
        """Delete requests with their answers from all replay sets, and every set that cannot be read."""
        folder = f"{self._folder}/replays"
        for name in self._files.all_names(folder):
            raw = self._files.read(f"{folder}/{name}")
            try:
                asked = ReplaySet.model_validate_json(raw or b"")
            except ValidationError:
                self._files.delete(f"{folder}/{name}")
                continue
            left = tuple(example for example in asked.examples if not is_erased(example))
            if len(left) < len(asked.examples):
                self.keep_replay_set(asked.model_copy(update={"examples": left}))

    def report_replay(self, result: ModelReplay) -> None:
        """Leave a result for the monitor of live quality."""
        report_replay(self._files, result)

    def keep_answers(self, name: str, answers: bytes) -> None:
        """Store answers of language models, as `optimization.answer_checkpoint` encodes them."""
        self._files.create(f"{self._folder}/answers/{name}.json", answers)

    def kept_answers(self) -> Iterator[bytes]:
        """Yield the stored answers that were not dropped since."""
        paths = [f"{self._folder}/answers/{name}" for name in self._files.names(f"{self._folder}/answers")]
        for content in self._files.read_many(paths).values():
            if isinstance(content, bytes):
                yield content

    def drop_kept_answers(self) -> None:
        folder = f"{self._folder}/answers"
        for name in self._files.all_names(folder):
            self._files.delete(f"{folder}/{name}")
        self._files.delete_empty(folder)

    def _erase_drawn(
        self, folder: str, records: Iterable[SequentialTestStep | RolloutDraw], trace_ids: Collection[str]
    ) -> None:
        nothing = StoredAnswer(values=None, confidence=None)
        erased = {"incumbent": nothing, "candidate": nothing}
        for record in records:
            if any(trace.trace_id in trace_ids for trace in record.drawn):
                drawn = [t.model_copy(update=erased) if t.trace_id in trace_ids else t for t in record.drawn]
                content = record.model_copy(update={"drawn": drawn}).model_dump_json(indent=1).encode()
                self._files.replace(f"{self._folder}/{folder}/{record.sequence:08d}.json", content)

    def _replay_path(self, version: str | None) -> str:
        return f"{self._folder}/replays/{version or BASELINE}.json"

    def _program_files(self, version: str) -> list[str]:
        folder = f"{self._folder}/versions/{version}"
        names = self._files.all_names(folder)
        return [f"{folder}/{name}" for name in names if name not in {"manifest.json", "withdrawn.json", _DECLINED}]

    def _check_not_withdrawn(self, version: str) -> None:
        if withdrawal := self.withdrawal(version):
            raise self._invalid(
                f"version {version} was withdrawn on {withdrawal.at:%Y-%m-%d}: {withdrawal.reason}",
                "use another one; 'autoopt versions' lists them",
            )

    def _point_to(self, last: Transition) -> Pointer:
        try:
            transitions = self.transitions()
        except InvalidArtifact:
            transitions = [last]  # an old damaged record must not hide what serves now
        pointer = pointer_after(transitions)
        self._files.replace(f"{self._folder}/active.json", pointer.model_dump_json(indent=1).encode())
        with suppress(ArtifactStoreUnavailable):  # the next run writes it
            self.index_serving(transitions)
            if len(transitions) > 1:
                self._files.delete(self._index_entry(transitions[:-1]))
        return pointer

    def index_serving(self, transitions: Sequence[Transition]) -> None:
        """Write what serves after these transitions, if there are any, into the index of all tenants."""
        if transitions:
            self._files.create(self._index_entry(transitions), b"")

    def _index_entry(self, transitions: Sequence[Transition]) -> str:
        version = transitions[-1].to_version
        try:
            manifest = self.manifest(version) if version else None
        except InvalidArtifact:
            manifest = None
        return entry_path(self.tenant_id, self.module, transitions, manifest)

    def _read(self, path: str, kind: type[Record]) -> Record | None:
        raw = self._files.read(f"{self._folder}/{path}")
        return None if raw is None else self._parse(raw, kind, path)

    def _numbered(self, folder: str) -> list[str]:
        """Return the names of a folder's records in order. Ignores other files."""
        return [name for name in self._files.names(f"{self._folder}/{folder}") if _NUMBERED.fullmatch(name)]

    def _read_all(self, folder: str, kind: type[Numbered]) -> list[Numbered]:
        records = [self._read_numbered(folder, name, kind) for name in self._numbered(folder)]
        return [record for record in records if record]

    def _read_numbered(self, folder: str, name: str, kind: type[Numbered]) -> Numbered | None:
        record = self._read(f"{folder}/{name}", kind)
        if record and f"{record.sequence:08d}.json" != name:
            raise self._invalid(
                f"{folder}/{name}: its content is that of number {record.sequence}", "restore it from a backup"
            )
        return record

    def _parse(self, raw: bytes, kind: type[Record], name: str) -> Record:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as e:
            raise self._invalid(f"{name}: {first_error(e)}", "restore it from a backup") from None

    def _invalid(self, problem: str, remedy: str) -> InvalidArtifact:
        return InvalidArtifact(f"{self.tenant_id}/{self.module}: {problem}", remedy)


def modules_of(files: ObjectStore, tenant_id: str) -> list[VersionStore]:
    """Return the stores of all modules that have artifacts of a tenant, installed or not."""
    return [VersionStore(files, tenant_id, name) for name in files.names(safe_name(tenant_id))]


def read_pointers(
    files: ObjectStore, places: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Pointer | AutooptError | None]:
    """Return the content of `active.json` by tenant and module.

    None if there is no such file. If one pointer cannot be read, its value is the error.
    """
    paths = {(tenant, module): f"{safe_name(tenant)}/{module}/active.json" for tenant, module in places}
    contents = files.read_many(list(paths.values()))
    return {place: _pointer(*place, contents[path]) for place, path in paths.items()}


def read_manifests(
    files: ObjectStore, versions: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], Manifest | AutooptError]:
    """Return one version's manifest by tenant and module. If a manifest cannot be read, its value is the error."""
    paths = {
        (tenant, module): f"{safe_name(tenant)}/{module}/versions/{version}/manifest.json"
        for (tenant, module), version in versions.items()
    }
    contents = files.read_many(list(paths.values()))
    return {place: _manifest(*place, versions[place], contents[path]) for place, path in paths.items()}


def _manifest(tenant_id: str, module: str, version: str, raw: bytes | Exception) -> Manifest | AutooptError:
    where = f"{tenant_id}/{module}: the manifest of {version}"
    if isinstance(raw, FileNotFoundError):
        return InvalidArtifact(f"{where} is missing", "restore it from a backup, or activate another version")
    if isinstance(raw, Exception):
        return ArtifactStoreUnavailable(f"{where}: {raw}", "check AUTOOPT_ARTIFACTS_URL and its permissions")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError:
        return InvalidArtifact(f"{where} is damaged", "restore it from a backup, or activate another version")


def _pointer(tenant_id: str, module: str, raw: bytes | Exception) -> Pointer | AutooptError | None:
    if isinstance(raw, bytes):
        try:
            return Pointer.model_validate_json(raw)
        except ValidationError:
            return InvalidArtifact(f"{tenant_id}/{module}: active.json is damaged", "the next transition repairs it")
    if isinstance(raw, FileNotFoundError):
        return None
    return ArtifactStoreUnavailable(
        f"{tenant_id}/{module}: active.json: {raw}", "check AUTOOPT_ARTIFACTS_URL and its permissions"
    )
