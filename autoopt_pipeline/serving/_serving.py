"""Public interface of serving: decisions, feedback, problems and status."""

import asyncio
import contextvars
import random
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.secrets import protect, protect_address
from autoopt_pipeline.serving._answers import AgentLike, BuildSettings, Decision, Loaded, Problem, Status, labels_of
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

# Concurrent decisions per process for programs without an `aforward`. They mostly wait.
_ASYNC_THREADS = 64


class Serving:
    """Answers with every tenant's promoted programs and follows promotions while it runs.

    Create one per process, or one before a fork. It is safe with threads and asyncio.

    `artifacts_url` is a folder or any fsspec URL; by default AUTOOPT_ARTIFACTS_URL, or the local folder. `lm` is the
    language model; by default the one of `dspy.configure` or `dspy.context`. `lms` are the tenants' candidate models by
    name: a version that names one is answered by it, and a version that names a model which is neither there nor `lm`
    is refused. Use `language_model` for one that is called exactly as in runs. `baseline_format` is the answer format
    of baselines: the tenants' `lm.answer_format` if it is not `auto`. A version uses the format that it was evaluated
    with. `encoder` is the folder of the sentence encoder that local routers use; by default AUTOOPT_ENCODER.
    `review_share` (0 to 1) is the fraction of decisions that is drawn at random for review.

    `refresh_seconds` limits the delay of a promotion, `max_loaded` the number of tenants' modules in memory, and
    `load_seconds` the time that a tenant's first request waits for the store. `own_traces` starts a new trace for every
    decision, for applications that send their own spans to the same Phoenix, where a trace belongs to one project.
    Feedback goes to `phoenix_endpoint`; by default to where `trace_to_phoenix` sends the decisions of this provider.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings with defaults
        self,
        artifacts_url: str | None = None,
        *,
        lm: "dspy.BaseLM | None" = None,
        lms: "Mapping[str, dspy.BaseLM] | None" = None,
        baseline_format: "AnswerFormat" = "chat",
        encoder: str | Path | None = None,
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
        named = ({} if lm is None else {lm.model: lm}) | dict(lms or {})
        for model in named.values():
            key = getattr(model, "kwargs", {}).get("api_key")
            protect(key if isinstance(key, str) else None)
        self._lm = lm
        self._review_share = review_share
        self._programs = ProgramCache(
            artifacts_url or settings.resolved_artifacts_url,
            refresh_seconds=refresh_seconds,
            max_loaded=max_loaded,
            load_seconds=load_seconds,
            build=BuildSettings(baseline_format, Path(encoder) if encoder else settings.encoder, named),
        )
        self._tracing = Tracing(tracer_provider, own_traces=own_traces)
        self._tracer_provider = tracer_provider
        self._phoenix = phoenix_address(settings, phoenix_endpoint, phoenix_api_key)
        self._phoenix_given = phoenix_endpoint is not None
        self._feedback = Feedback(self._feedback_address)
        begin_in_every_process(self)

    def begin(self) -> None:
        """Create the state of this process. Called automatically after a fork."""
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
        """Answer one request and record it as a span.

        `agents` are the application's current agents, for modules that choose one; other agents are never answered.
        Raises `InvalidRequest`, `UnknownModule`, `InvalidTenantId`, and whatever the language model raises.
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
        """Like `decide`, without blocking the event loop. A program without `aforward` runs in a thread."""
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
        """Return the program that serves a tenant now, for your own DSPy code. Call it again for each request."""
        spec = get_module(module)
        return self._programs.get(tenant_id, spec, labels_of(spec, agents), request_id)

    def feedback(  # noqa: PLR0913 - keyword-only, and most calls give one
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
        """Record whether a decision was correct, the right answer, or a score.

        `correction` is the right answer in the form of a label: an agent's name, or `a > b`. `by` names the author;
        later feedback with the same `kind` and `by` replaces earlier feedback. Set `sampled` only if the feedback was
        requested because the decision was drawn for review, not because something went wrong; it is ignored unless
        `decision.sampled`.

        Feedback is sent in the background, and `problems` shows failures. With `wait` it is sent before the call
        returns and raises `PhoenixUnavailable` or `PhoenixRefused`. Raises `InvalidRequest` for feedback that is empty
        or cannot be stored.
        """
        spec = get_module(decision.module)
        parts = spec.parts or (spec,)
        request = FeedbackRequest(
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
            raise InvalidRequest("the decision was not recorded as a span", "set up tracing, see docs/serving.md")
        annotations = [request.annotation(decision.spans[part.name], part.contract.annotation) for part in parts]
        if target := target_of(self._tracer_provider):
            for part in parts:
                target.count(decision.tenant_id, part.contract.span_name)
        if wait:
            self._feedback.send(annotations)
        else:
            for annotation in annotations:
                self._feedback.put(annotation)

    def problems(self) -> list[Problem]:
        """Return current problems.

        These are programs that are rejected, missing or unreadable, spans and feedback that cannot be sent, and lost
        feedback.
        """
        target = target_of(self._tracer_provider)
        sending = (self._tracing.problem, target.problem() if target else None, self._feedback.problem)
        return [*self._programs.problems(), *(problem for problem in sending if problem)]

    def status(self) -> list[Status]:
        """Return what serves, for every loaded module of a tenant."""
        return self._programs.status()

    def refresh(self) -> None:
        """Follow all pointers now instead of within `refresh_seconds`."""
        self._programs.refresh(only_due=False)

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until all feedback is sent. Returns False if something is left."""
        return self._feedback.flush(seconds)

    def close(self) -> None:
        """Stop following promotions. Loaded programs continue to serve, and waiting feedback is still sent."""
        self._programs.close()

    def _feedback_address(self) -> tuple[str, str | None]:
        """Return the Phoenix that was passed in, else the one that receives the spans, else the one of the settings."""
        target = None if self._phoenix_given else target_of(self._tracer_provider)
        return (target.endpoint, target.api_key) if target else self._phoenix

    def _recorded(
        self, tenant_id: str, spec: ModuleSpec, loaded: Loaded, request_id: str | None, inputs: Mapping[str, Any]
    ) -> AbstractContextManager[Recording]:
        """Start the span of a decision. The draw for review comes first, before the outcome can be known."""
        drawn = random.random() < self._review_share  # noqa: S311 - not a secret
        return self._tracing.decision(tenant_id, spec, loaded, request_id, inputs, sampled=drawn)

    @contextmanager
    def _context(self, loaded: Loaded) -> Generator[None, None, None]:
        """The application's language model, with its own adapter if it has one, else the adapter that runs use.

        Turns off DSPy's history and trace, which would keep every tenant's requests in memory.
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
        context = contextvars.copy_context()  # with DSPy's settings and the current span
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
    """Return a language model that sends the same requests as a run, so that the gate's result holds.

    The arguments are the fields of a tenant's `lm`. The model makes blocking calls only; `Serving.adecide` runs them in
    threads. Raises `LMNotConfigured`, and `InvalidConfig` for a value that a tenant's configuration may not have.
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
    """Send decisions and their feedback to the tenants' Phoenix projects. Call it once, before the first decision.

    The defaults are AUTOOPT_PHOENIX_ENDPOINT and AUTOOPT_PHOENIX_API_KEY. It extends the application's tracer provider,
    or creates a global one. Other spans of the application are not sent.
    """
    from autoopt_pipeline.serving._phoenix import add_phoenix

    return add_phoenix(*phoenix_address(load_settings(), endpoint, api_key), tracer_provider)


def phoenix_address(settings: Settings, endpoint: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Return Phoenix's address and key. The key of the settings is only used with the address of the settings.

    Raises `InvalidSettings` for a key that cannot be sent over HTTP.
    """
    protect_address(endpoint or settings.phoenix_endpoint)
    if api_key:
        api_key = sendable_key(api_key, "the key given for Phoenix")
    if endpoint:
        return endpoint, api_key
    key = settings.phoenix_api_key
    return settings.phoenix_endpoint, api_key or (key.get_secret_value() if key else None)
