"""The face of serving: decisions, feedback, and what is in service."""

import asyncio
import contextvars
import random
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.secrets import protect, protect_address
from autoopt_pipeline.serving._answers import AgentLike, Decision, Loaded, Problem, Status, labels_of
from autoopt_pipeline.serving._feedback import Feedback, FeedbackRequest
from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.serving._forms import program_inputs
from autoopt_pipeline.serving._programs import ProgramCache
from autoopt_pipeline.serving._target import target_of
from autoopt_pipeline.serving._tracing import Recording, Tracing
from autoopt_pipeline.settings import Settings, load_settings, sendable_key
from autoopt_pipeline.span_contract import AnnotatorKind

if TYPE_CHECKING:
    import dspy
    from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
    from opentelemetry.trace import TracerProvider

    from autoopt_pipeline.modules.answer_format import AnswerFormat

_ASYNC_THREADS = 64
"""Decisions under way at once in one process, for programs that have no `aforward` of their own. They mostly wait."""


class Serving:
    """Answers with every tenant's promoted programs, and follows promotions while it runs.

    Make one per process, or one before a fork; it is safe in threads and in asyncio. `artifacts_url` is any fsspec
    URL; by default AUTOOPT_ARTIFACTS_URL, or the local folder. `lm` is the language model; by default what
    `dspy.configure` or `dspy.context` say; `language_model` makes one that is asked as runs ask it. A version is asked
    in the format that it was proven in, and a baseline in `baseline_format`: what `lm.answer_format` of the tenants
    says, if that is not `auto`. `review_share` (0 to 1) of the decisions are drawn at random for review.

    `refresh_seconds` is how soon a promotion serves, `max_loaded` how many tenants' modules are kept, and
    `load_seconds` how long the first request of one may wait for the store. `own_traces` begins a new trace for every
    decision, for applications that send their own spans to the same Phoenix: there, a trace belongs to one project.
    Feedback goes to `phoenix_endpoint`, by default where `trace_to_phoenix` sends the decisions of this provider.
    """

    def __init__(
        self,
        artifacts_url: str | None = None,
        *,
        lm: "dspy.BaseLM | None" = None,
        baseline_format: "AnswerFormat" = "chat",
        review_share: float = 0.0,
        refresh_seconds: float = 30.0,
        max_loaded: int = 1000,
        load_seconds: float = 5.0,
        own_traces: bool = False,
        tracer_provider: "TracerProvider | None" = None,
        phoenix_endpoint: str | None = None,
        phoenix_api_key: str | None = None,
    ) -> None:
        if not 0 <= review_share <= 1:
            raise InvalidRequest(f"review_share is {review_share}", "use a share from 0 to 1")
        if baseline_format not in {"chat", "json_schema"}:
            raise InvalidRequest(f"baseline_format is {baseline_format!r}", "use 'chat' or 'json_schema'")
        settings = load_settings()
        key = getattr(lm, "kwargs", {}).get("api_key")
        protect(key if isinstance(key, str) else None)
        self._lm = lm
        self._review_share = review_share
        self._programs = ProgramCache(
            artifacts_url or settings.resolved_artifacts_url,
            refresh_seconds=refresh_seconds,
            max_loaded=max_loaded,
            load_seconds=load_seconds,
            baseline_format=baseline_format,
        )
        self._tracing = Tracing(tracer_provider, own_traces=own_traces)
        self._tracer_provider = tracer_provider
        self._phoenix = phoenix_address(settings, phoenix_endpoint, phoenix_api_key)
        self._phoenix_given = phoenix_endpoint is not None
        self._feedback = Feedback(self._feedback_address)
        begin_in_every_process(self)

    def begin(self) -> None:
        """Make what belongs to one process; called by itself after a fork."""
        self._threads = ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="autoopt-decide")

    def decide(
        self,
        tenant_id: str,
        module: str,
        /,
        *,
        agents: Sequence[AgentLike] | None = None,
        request_id: str | None = None,
        **inputs: Any,
    ) -> Decision:
        """Answer one request, and write it as a span.

        `agents` are the application's agents of now, for modules that choose from them; no other is ever answered.
        Raises `InvalidRequest`, `UnknownModule`, `InvalidTenantId`, and what the language model raises.
        """
        spec = get_module(module)
        read = program_inputs(spec, inputs)
        loaded = self._programs.get(tenant_id, spec, labels_of(spec, agents), request_id)
        with self._recorded(tenant_id, spec, loaded, request_id, inputs) as recording:
            with self._context(loaded):
                prediction = loaded.program(**read)
            return _decision(tenant_id, spec, loaded, prediction, recording)

    async def adecide(
        self,
        tenant_id: str,
        module: str,
        /,
        *,
        agents: Sequence[AgentLike] | None = None,
        request_id: str | None = None,
        **inputs: Any,
    ) -> Decision:
        """As `decide`, without blocking the event loop. A program without `aforward` answers in a thread."""
        spec = get_module(module)
        read = program_inputs(spec, inputs)
        loaded = await self._programs.aget(tenant_id, spec, labels_of(spec, agents), request_id)
        with self._recorded(tenant_id, spec, loaded, request_id, inputs) as recording:
            with self._context(loaded):
                prediction = await self._acall(loaded.program, read)
            return _decision(tenant_id, spec, loaded, prediction, recording)

    def program(
        self,
        tenant_id: str,
        module: str,
        /,
        *,
        agents: Sequence[AgentLike] | None = None,
        request_id: str | None = None,
    ) -> Loaded:
        """The program that serves a tenant now, to be called by DSPy's own means. Ask again for each request."""
        spec = get_module(module)
        return self._programs.get(tenant_id, spec, labels_of(spec, agents), request_id)

    def feedback(
        self,
        decision: Decision,
        *,
        correct: bool | None = None,
        correction: str | None = None,
        score: float | None = None,
        kind: AnnotatorKind = "HUMAN",
        by: str = "",
        sampled: bool = False,
        wait: bool = False,
    ) -> None:
        """Say how good a decision was: whether it was correct, what would have been, or a score.

        `correction` is the right answer as labels are shown: an agent's name, or `a > b`. A later word of the same
        kind and `by` (who says so) replaces the earlier one. `sampled` says that this was asked because the decision
        was drawn for review, not because something went wrong; it counts only where `decision.sampled` is true.

        Sent in the background; what goes wrong shows in `problems`. With `wait` it is sent before this returns, and
        raises `PhoenixUnavailable` or `PhoenixRefused`. Raises `InvalidRequest` for feedback that says nothing, or
        something that cannot be stored.
        """
        spec = get_module(decision.module)
        parts = spec.parts or (spec,)
        said = FeedbackRequest(
            correct=correct,
            correction=correction,
            score=score,
            kind=kind,
            by=by,
            drawn=sampled and decision.sampled,
        )
        if correction is not None and (correct or len(parts) > 1):
            raise InvalidRequest(
                f"a correction of {spec.name} is not clear",
                "of a composed module, correct decision.part(...); and what is corrected is not correct",
            )
        if not decision.spans:
            raise InvalidRequest("the decision was not recorded as a span", "set up tracing, see docs/serve.md")
        annotations = [said.annotation(decision.spans[part.name], part.contract.annotation) for part in parts]
        if wait:
            self._feedback.send(annotations)
        else:
            for annotation in annotations:
                self._feedback.put(annotation)

    def problems(self) -> list[Problem]:
        """What is wrong now: programs that are refused, not there or cannot be read, spans and feedback that cannot be
        sent; and what feedback was lost."""
        target = target_of(self._tracer_provider)
        sending = (self._tracing.problem, target.problem() if target else None, self._feedback.problem)
        return [*self._programs.problems(), *(problem for problem in sending if problem)]

    def status(self) -> list[Status]:
        """What is in service, for every tenant's module that is loaded."""
        return self._programs.status()

    def refresh(self) -> None:
        """Follow all pointers now instead of within `refresh_seconds`."""
        self._programs.refresh(only_due=False)

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until all feedback is sent. False when some is left."""
        return self._feedback.flush(seconds)

    def close(self) -> None:
        """Stop following. What is loaded goes on serving; feedback that waits is still sent."""
        self._programs.close()

    def _feedback_address(self) -> tuple[str, str | None]:
        """The Phoenix that was given, else the one that gets the spans, else that of the settings."""
        target = None if self._phoenix_given else target_of(self._tracer_provider)
        return (target.endpoint, target.api_key) if target else self._phoenix

    def _recorded(
        self, tenant_id: str, spec: ModuleSpec, loaded: Loaded, request_id: str | None, inputs: Mapping[str, Any]
    ) -> AbstractContextManager[Recording]:
        """The span of a decision. Whether it is drawn for review is settled before anybody knows what comes of it."""
        drawn = random.random() < self._review_share  # noqa: S311 - no secret
        return self._tracing.decision(tenant_id, spec, loaded, request_id, inputs, sampled=drawn)

    @contextmanager
    def _context(self, loaded: Loaded) -> Generator[None, None, None]:
        """The application's language model, with the adapter that the gate judged programs with unless it has one.

        DSPy's own history and trace are off: they would keep every tenant's requests in memory.
        """
        import dspy

        own: dict[str, Any] = {} if dspy.settings.adapter else {"adapter": loaded.adapter}
        if self._lm is not None:
            own["lm"] = self._lm
        with dspy.context(disable_history=True, trace=None, **own):
            yield

    async def _acall(self, program: "dspy.Module", inputs: Mapping[str, str]) -> "dspy.Prediction":
        if hasattr(program, "aforward"):
            return await program.acall(**inputs)
        context = contextvars.copy_context()  # DSPy's settings, and the current span
        call = partial(context.run, program, **inputs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _decision(
    tenant_id: str, spec: ModuleSpec, loaded: Loaded, prediction: "dspy.Prediction", recording: Recording
) -> Decision:
    values = {name: getattr(prediction, name) for name in spec.outputs}
    confidence = getattr(prediction, "confidence", None)
    recording.answered(values, confidence)
    return Decision(
        tenant_id=tenant_id,
        module=spec.name,
        values=values,
        confidence=confidence,
        version=loaded.version,
        arm=loaded.arm,
        sampled=recording.sampled and bool(recording.spans),
        trace_id=recording.trace_id,
        spans=recording.spans,
    )


def language_model(
    model: str,
    *,
    api_base: str | None = None,
    api_key_env: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout_seconds: float = 60,
) -> "dspy.LM":
    """A language model that is asked as runs ask it, so that a decision is what the gate saw: the same request.

    The arguments are the fields of a tenant's `lm`. It answers blocking calls only; `Serving.adecide` makes these in
    threads. Raises `LMNotConfigured`, and `InvalidConfig` for a value that no tenant's configuration may have.
    """
    from autoopt_pipeline.lm.models import plain_lm

    return plain_lm(
        model=model,
        api_base=api_base,
        api_key_env=api_key_env,
        temperature=temperature,
        max_tokens=max_tokens,
        timeout_seconds=timeout_seconds,
    )


def trace_to_phoenix(
    endpoint: str | None = None, api_key: str | None = None, *, tracer_provider: "SDKTracerProvider | None" = None
) -> "SDKTracerProvider":
    """Send decisions to Phoenix, each to its tenant's project, and feedback on them; call it once, before the first.

    By default AUTOOPT_PHOENIX_ENDPOINT and AUTOOPT_PHOENIX_API_KEY. Adds to the tracer provider of the application, or
    makes a global one where there is none. Other spans of the application are not sent.
    """
    from autoopt_pipeline.serving._phoenix import add_phoenix

    return add_phoenix(*phoenix_address(load_settings(), endpoint, api_key), tracer_provider)


def phoenix_address(settings: Settings, endpoint: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Phoenix's address and key as given. The key of the settings goes to the address of the settings only.

    Raises `InvalidSettings` for a key that cannot be sent over HTTP.
    """
    protect_address(endpoint or settings.phoenix_endpoint)
    if api_key:
        api_key = sendable_key(api_key, "the key given for Phoenix")
    if endpoint:
        return endpoint, api_key
    key = settings.phoenix_api_key
    return settings.phoenix_endpoint, api_key or (key.get_secret_value() if key else None)
