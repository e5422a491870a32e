"""Versioned programs per tenant and module, and which of them is active.

    {root}/{tenant}/{module}/versions/{version}/{program.json, manifest.json}   written once, manifest last
    {root}/{tenant}/{module}/moves/{sequence}.json                              every change of the active version
    {root}/{tenant}/{module}/active.json                                        derived from the last move
    {root}/{tenant}/{module}/ledger/{sequence}.json                             see optimization.ledger

Moves and ledger entries are created exclusively, so of two writers that saw the same state one fails.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.artifacts.files import Files
from autoopt_pipeline.errors import InvalidArtifact, StaleIncumbent
from autoopt_pipeline.tenant_id import safe_name

Record = TypeVar("Record", bound=BaseModel)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)


class Program(_Stored):
    """A program's envelope. Holds no time and no run id, so equal traces give equal bytes."""

    format: Literal[1] = 1
    tenant_id: str
    module: str
    fingerprint: str
    labels: list[str]
    state: dict[str, Any]

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False, indent=1).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


class Manifest(_Stored):
    """How a version came to be, and what was measured of it."""

    version: str
    program_sha256: str
    created_at: datetime
    run_id: str
    parent: str | None
    verdict: str
    reason: str
    window_start: datetime
    window_end: datetime
    examples: dict[str, int]
    provenance: dict[str, int]
    incumbent_score: float
    candidate_score: float
    gate: dict[str, float | int]
    optimizer: str
    seed: int
    lm: str
    stand_in: bool
    lm_calls: int
    lm_tokens: int
    packages: dict[str, str]


class Move(_Stored):
    """One change of the active version: who moved it, when, why, from what, to what."""

    sequence: int
    at: datetime
    by: str
    why: str
    expected: str | None
    to: str


class Active(_Stored):
    """What serving loads. `canary` names a version and its share of requests, when one is being tried."""

    version: str
    sequence: int
    canary: dict[str, float] | None = None


class LedgerEntry(_Stored):
    """One finalist's look at the holdout, and the risk it took. Written before the look."""

    sequence: int
    at: datetime
    candidate_digest: str
    holdout_digest: str
    incumbent: str | None
    alpha: float


class ModuleArtifacts:
    """The artifacts of one tenant's module."""

    def __init__(self, files: Files, tenant_id: str, module: str) -> None:
        self._files = files
        self._folder = f"{safe_name(tenant_id)}/{module}"
        self.tenant_id = tenant_id
        self.module = module

    def save(self, program: Program, manifest: Manifest) -> None:
        """Store a version. The manifest comes last: without it a version is not there."""
        folder = f"{self._folder}/versions/{manifest.version}"
        self._files.create(f"{folder}/program.json", program.encode())
        self._files.create(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode())

    def versions(self) -> list[Manifest]:
        """All whole versions, oldest first."""
        names = self._files.names(f"{self._folder}/versions")
        manifests = [self._read(f"versions/{name}/manifest.json", Manifest) for name in names]
        return [manifest for manifest in manifests if manifest]

    def load(self, version: str) -> Program:
        """A version's program. Raises `InvalidArtifact` when it is missing, damaged or another tenant's."""
        manifest = self._read(f"versions/{version}/manifest.json", Manifest)
        raw = self._files.read(f"{self._folder}/versions/{version}/program.json")
        if manifest is None or raw is None:
            raise self._invalid(f"version {version} does not exist", "list them with 'autoopt versions'")
        if hashlib.sha256(raw).hexdigest() != manifest.program_sha256:
            raise self._invalid(f"version {version} is damaged", "restore it from a backup, or activate another")
        program = self._parse(raw, Program, f"version {version}")
        if (program.tenant_id, program.module) != (self.tenant_id, self.module):
            raise self._invalid(
                f"version {version} belongs to {program.tenant_id}/{program.module}",
                "activate one of its own",
            )
        return program

    def active(self) -> Active | None:
        """The active version by the last move, or None. Mends `active.json` where a writer died before it."""
        last = self._last_move()
        if last is None:
            return None
        pointer = self._read("active.json", Active)
        if pointer is None or pointer.sequence < last.sequence:
            pointer = self._point_to(last)
        return pointer

    def move(self, to: str, *, expected: str | None, by: str, why: str) -> Move:
        """Make a version active. Raises `StaleIncumbent` when the active one is no longer `expected`."""
        self.load(to)
        last = self._last_move()
        current = last.to if last else None
        move = Move(
            sequence=last.sequence + 1 if last else 1,
            at=datetime.now(UTC),
            by=by,
            why=why,
            expected=expected,
            to=to,
        )
        path = f"{self._folder}/moves/{move.sequence:08d}.json"
        if current != expected or not self._files.create(path, move.model_dump_json(indent=1).encode()):
            raise StaleIncumbent(
                f"{self.tenant_id}/{self.module}: the active version is no longer {expected or 'the baseline'}",
                "compare with the one that is active now",
            )
        self._point_to(move)
        return move

    def moves(self) -> list[Move]:
        """Every change of the active version, oldest first."""
        return self._read_all("moves", Move)

    def ledger(self) -> list[LedgerEntry]:
        return self._read_all("ledger", LedgerEntry)

    def charge(self, entry: LedgerEntry) -> bool:
        """Enter a look at the holdout. False when another run took the same place in the ledger."""
        path = f"{self._folder}/ledger/{entry.sequence:08d}.json"
        return self._files.create(path, entry.model_dump_json(indent=1).encode())

    def _last_move(self) -> Move | None:
        names = self._files.names(f"{self._folder}/moves")
        return self._read(f"moves/{names[-1]}", Move) if names else None

    def _point_to(self, move: Move) -> Active:
        pointer = Active(version=move.to, sequence=move.sequence)
        self._files.replace(f"{self._folder}/active.json", pointer.model_dump_json(indent=1).encode())
        return pointer

    def _read(self, path: str, kind: type[Record]) -> Record | None:
        raw = self._files.read(f"{self._folder}/{path}")
        return None if raw is None else self._parse(raw, kind, path)

    def _read_all(self, folder: str, kind: type[Record]) -> list[Record]:
        records = [self._read(f"{folder}/{name}", kind) for name in self._files.names(f"{self._folder}/{folder}")]
        return [record for record in records if record]

    def _parse(self, raw: bytes, kind: type[Record], what: str) -> Record:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as e:
            first = e.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._invalid(f"{what}: {place}: {first['msg']}", "restore it from a backup") from None

    def _invalid(self, what: str, remedy: str) -> InvalidArtifact:
        return InvalidArtifact(f"{self.tenant_id}/{self.module}: {what}", remedy)
