"""What serves for one tenant's module at one moment. Imports DSPy, so it is imported only when a program is loaded."""

import random
from collections.abc import Collection, Mapping, Sequence

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.modules.named_model import named_model
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Pointer, Program, check_models
from autoopt_pipeline.registry.serialization import compose, deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving._answers import Arm, BuildSettings, Loaded
from autoopt_pipeline.span_contract import BASELINE, CANARY

Labels = tuple[Label, ...]
# Active pointers by module: the module's own, and those of its parts.
Pointers = Mapping[str, Pointer | None]

# Sets of agents per tenant and module for which programs are cached. Most applications have one.
_KEPT = 8


class Snapshot:
    """State of a tenant's module as read from the store. It is replaced as a whole, so readers need no lock.

    `programs` are keyed by module and version. A version that a pointer names but `programs` lacks was rejected.
    """

    def __init__(
        self,
        spec: ModuleSpec,
        pointers: Pointers,
        programs: Mapping[tuple[str, str], Program],
        settings: BuildSettings,
    ) -> None:
        self.pointers = pointers
        self.programs = programs
        self._spec = spec
        self._settings = settings
        self._built: dict[tuple[str | None, Arm, Labels], Loaded] = {}

    @property
    def pointer(self) -> Pointer | None:
        return self.pointers.get(self._spec.name)

    @property
    def version(self) -> str | None:
        """The active version, or None if the baseline serves."""
        return self.pointer.version if self.pointer else None

    @property
    def label_sets(self) -> list[Labels]:
        """Sets of labels for which programs have been built."""
        return list(dict.fromkeys(labels for _, _, labels in self._built))

    def loaded(self, labels: Labels, request_id: str | None) -> Loaded:
        """Return the program for a request. During a canary, the same request id always gets the same version."""
        drawn = drawn_canary(self._spec.name, self.pointer, request_id)
        if drawn is not None and self._serves(drawn):
            return self._build(None if drawn == BASELINE else drawn, CANARY, labels)
        return self._build(self.version, self._main_arm, labels)

    def build(self, label_sets: Collection[Labels]) -> None:
        """Build all programs in advance, so that no request has to. Raises `InvalidArtifact` if one does not fit."""
        for labels in label_sets:
            self._build(self.version, self._main_arm, labels)
            for drawn in _canaries(self.pointer):
                if self._serves(drawn):
                    self._build(None if drawn == BASELINE else drawn, CANARY, labels)

    @property
    def _main_arm(self) -> Arm:
        return "active" if self.version else "baseline"

    def _serves(self, canary: str) -> bool:
        return canary == BASELINE or (self._spec.name, canary) in self.programs

    def _build(self, version: str | None, arm: Arm, labels: Labels) -> Loaded:
        key = (version, arm, labels)
        built = self._built.get(key)
        if built is None:
            if version is not None:
                parts = {}
                program = deserialize(
                    self._spec, labels, self.programs[self._spec.name, version], encoder=self._settings.encoder
                )
            else:
                parts = {name: part for name, part in self.programs if name != self._spec.name}
                of_parts = {name: self.programs[name, part] for name, part in parts.items()}
                program = compose(
                    self._spec,
                    labels,
                    of_parts,
                    baseline_format=self._settings.baseline_format,
                    encoder=self._settings.encoder,
                )
            for predictor in program.predictors():
                if name := named_model(predictor.signature):
                    predictor.lm = self._settings.lms[name]
            built = Loaded(program, version, arm, parts, AnswerAdapter())
            # Replaced and not changed, because other threads may read it. Building the same program twice is harmless.
            self._built = dict([*self._built.items(), (key, built)][-_KEPT:])
        return built


def take_snapshot(
    files: ObjectStore,
    tenant_id: str,
    spec: ModuleSpec,
    pointers: Pointers,
    label_sets: Sequence[Labels],
    before: Snapshot | None,
    settings: BuildSettings,
) -> tuple[Snapshot, InvalidArtifact | None]:
    """Load the versions that the pointers name, and build them for these sets of labels. Loaded versions are reused.

    A version that names a model that the application did not give is rejected. A rejected canary, or a rejected part of
    a baseline, is omitted, and its error is the second value. Raises `InvalidArtifact` if the active version is
    rejected, and `ArtifactStoreUnavailable`.
    """
    pointer = pointers.get(spec.name)
    programs: dict[tuple[str, str], Program] = {}
    refused: InvalidArtifact | None = None

    def load(of: ModuleSpec, version: str) -> Program:
        stored = before.programs.get((of.name, version)) if before else None
        program = stored or VersionStore(files, tenant_id, of.name).load(version)
        check_models(program, settings.lms)
        return program

    if pointer and pointer.version:
        programs[spec.name, pointer.version] = load(spec, pointer.version)
    optional = [(spec, version) for version in _canaries(pointer) if version != BASELINE]
    if pointer is None or pointer.version is None or BASELINE in _canaries(pointer):
        parts = [(part, pointers.get(part.name)) for part in spec.parts]
        optional += [(part, of_part.version) for part, of_part in parts if of_part and of_part.version]
    for of, version in optional:
        try:
            stored = load(of, version)
            for labels in label_sets[:1]:
                # Rejects a version that does not fit.
                deserialize(of, of.labels or labels, stored, encoder=settings.encoder)
            programs[of.name, version] = stored
        except InvalidArtifact as e:
            refused = e
    snapshot = Snapshot(spec, pointers, programs, settings)
    snapshot.build(label_sets)
    return snapshot, refused


def _canaries(pointer: Pointer | None) -> Mapping[str, float]:
    return (pointer.canary if pointer else None) or {}


def drawn_canary(module: str, pointer: Pointer | None, request_id: str | None) -> str | None:
    """Return the canary version that the request id maps to, or None. Without an id, draw at random.

    The canaries' fractions divide the interval from 0 to 1 in the order of their names; the hash of module and id is a
    point in it.
    """
    canaries = _canaries(pointer)
    if not canaries:
        return None
    drawn = random.random()  # noqa: S311 - not a secret
    point = drawn if request_id is None else unit_interval(f"{module}\0{request_id}")
    for version in sorted(canaries):
        point -= canaries[version]
        if point < 0:
            return version
    return None
