"""Converts local routers to their stored form and back."""

from collections.abc import Callable, Sequence
from pathlib import Path

import dspy
import numpy as np
from numpy.typing import NDArray

from autoopt_pipeline.errors import InvalidArtifact, InvalidSettings
from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.modules.encoder import Encoder, open_encoder
from autoopt_pipeline.modules.local_router import BUCKETS, LocalRouter
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.registry.records import StoredEncoder, StoredRouter

# Returns the encoder that a router of a program needs. Raises `InvalidArtifact` if it is not here.
FindEncoder = Callable[[StoredEncoder], Encoder]


def encode_router(cascade: Cascade) -> StoredRouter:
    """Return the stored form of a program's router."""
    router, encoder = cascade.router, cascade.router.encoder
    return StoredRouter(
        classes=list(router.classes),
        threshold=cascade.threshold,
        temperature=router.temperature,
        scale=router.scale.tolist(),
        bias=router.bias.tolist(),
        rarity=router.rarity.tobytes(),
        weights=router.weights.tobytes(),
        encoder=StoredEncoder(sha256=encoder.sha256, dimension=encoder.dimension) if encoder else None,
    )


def decode_router(
    spec: ModuleSpec,
    labels: Sequence[Label],
    model: dspy.Module,
    stored: StoredRouter,
    sources: Sequence[str],
    find_encoder: FindEncoder,
) -> Cascade:
    """Return the program that a stored router and its model make.

    Raises `InvalidArtifact` if the arrays are not those of a router with these classes, a number is not finite, or its
    sentence encoder is not here.
    """
    classes = len(stored.classes)
    columns = BUCKETS + (stored.encoder.dimension if stored.encoder else 0)
    lengths = (len(stored.scale), len(stored.bias), len(stored.rarity), len(stored.weights))
    numbers = [*stored.scale, *stored.bias, stored.temperature]
    if lengths != (classes, classes, BUCKETS, columns * classes) or not np.isfinite(numbers).all():
        raise InvalidArtifact(
            f"module {spec.name}: the local router of a program is damaged",
            "restore the version from a backup, or activate another version",
        )
    router = LocalRouter(
        classes=tuple(stored.classes),
        weights=np.frombuffer(stored.weights, np.int8).reshape(columns, classes),
        scale=np.array(stored.scale, np.float32),
        bias=np.array(stored.bias, np.float32),
        rarity=np.frombuffer(stored.rarity, np.uint8),
        temperature=stored.temperature,
        encoder=find_encoder(stored.encoder) if stored.encoder else None,
    )
    return Cascade(spec, labels, model, router, stored.threshold, sources)


def encoder_in(folder: Path | None) -> FindEncoder:
    """Return a function that finds a router's encoder in the deployment's folder, and accepts no other encoder."""

    def find(needed: StoredEncoder) -> Encoder:
        what = f"the local router of a program needs the sentence encoder {needed.sha256[:12]}"
        remedy = "set AUTOOPT_ENCODER or Serving(encoder=...) to the folder of that encoder"
        if folder is None:
            raise InvalidArtifact(f"{what}, and none is set", remedy)
        try:
            here = open_encoder(folder)
        except InvalidSettings as e:
            raise InvalidArtifact(f"{what}; {e.what}", e.remedy) from e
        if (here.sha256, here.dimension) != (needed.sha256, needed.dimension):
            raise InvalidArtifact(f"{what}, and {folder} holds {here.sha256[:12]}", remedy)
        return here

    return find


def no_encoder(needed: StoredEncoder) -> Encoder:
    """Return an encoder that is only a name, for programs that are shown or compared and do not answer."""

    def encode(text: str) -> NDArray[np.float32]:
        raise NotImplementedError("this program was not loaded to answer")

    return Encoder(needed.sha256, needed.dimension, encode)
