"""Converts local routers to their stored form and back."""

from collections.abc import Sequence

import dspy
import numpy as np

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.modules.local_router import BUCKETS, LocalRouter
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.registry.records import StoredRouter


def encode_router(cascade: Cascade) -> StoredRouter:
    """Return the stored form of a program's router."""
    router = cascade.router
    return StoredRouter(
        classes=list(router.classes),
        threshold=cascade.threshold,
        temperature=router.temperature,
        scale=router.scale.tolist(),
        bias=router.bias.tolist(),
        rarity=router.rarity.tobytes(),
        weights=router.weights.tobytes(),
    )


def decode_router(
    spec: ModuleSpec, labels: Sequence[Label], model: dspy.Module, stored: StoredRouter, sources: Sequence[str]
) -> Cascade:
    """Return the program that a stored router and its model make.

    Raises `InvalidArtifact` if the arrays are not those of a router with these classes, or a number is not finite.
    """
    classes = len(stored.classes)
    lengths = (len(stored.scale), len(stored.bias), len(stored.rarity), len(stored.weights))
    numbers = [*stored.scale, *stored.bias, stored.temperature]
    if lengths != (classes, classes, BUCKETS, BUCKETS * classes) or not np.isfinite(numbers).all():
        raise InvalidArtifact(
            f"module {spec.name}: the local router of a program is damaged",
            "restore the version from a backup, or activate another version",
        )
    router = LocalRouter(
        classes=tuple(stored.classes),
        weights=np.frombuffer(stored.weights, np.int8).reshape(BUCKETS, classes),
        scale=np.array(stored.scale, np.float32),
        bias=np.array(stored.bias, np.float32),
        rarity=np.frombuffer(stored.rarity, np.uint8),
        temperature=stored.temperature,
    )
    return Cascade(spec, labels, model, router, stored.threshold, sources)
