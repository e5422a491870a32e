"""Where tracer providers send decisions. Feedback goes to the same Phoenix, so it looks here."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from autoopt_pipeline.serving._answers import Problem


@dataclass(frozen=True)
class Target:
    """A Phoenix that gets spans, with its key, and what is wrong with sending them at the moment."""

    endpoint: str
    api_key: str | None
    problem: Callable[[], Problem | None]


_targets: "weakref.WeakKeyDictionary[trace.TracerProvider, Target]" = weakref.WeakKeyDictionary()


def set_target(provider: trace.TracerProvider, target: Target) -> None:
    """From now on this provider sends decisions there; of several the last one counts for feedback."""
    _targets[provider] = target


def target_of(provider: trace.TracerProvider | None) -> Target | None:
    """Where a provider, or else the global one, sends decisions; None when nobody has said so."""
    return _targets.get(provider or trace.get_tracer_provider())
