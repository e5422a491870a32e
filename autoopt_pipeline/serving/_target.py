"""Records which Phoenix each tracer provider sends decisions to, because feedback goes to the same one."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from autoopt_pipeline.serving._answers import Problem

# Resource attribute that names a span's Phoenix project.
PROJECT = "openinference.project.name"


@dataclass(frozen=True)
class Target:
    """A Phoenix that receives spans, with its key, and the current problem with sending them.

    `count` counts feedback on a decision, by tenant and name of its span, as decisions are counted.
    """

    endpoint: str
    api_key: str | None
    problem: Callable[[], Problem | None]
    count: Callable[[str, str], None]


_targets: "weakref.WeakKeyDictionary[trace.TracerProvider, Target]" = weakref.WeakKeyDictionary()


def set_target(provider: trace.TracerProvider, target: Target) -> None:
    """Record where a provider sends decisions. The last target counts for feedback."""
    _targets[provider] = target


def target_of(provider: trace.TracerProvider | None) -> Target | None:
    """Return where a provider, or else the global provider, sends decisions; None if unknown."""
    return _targets.get(provider or trace.get_tracer_provider())
