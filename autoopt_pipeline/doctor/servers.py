"""Checks of Phoenix and the language models."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.clock import compare_clocks
from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn
from autoopt_pipeline.errors import AutooptError, LMNotConfigured
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import LMSettings, RoutingConfigUnified
from autoopt_pipeline.text import one_line

if TYPE_CHECKING:
    from autoopt_pipeline.lm.models import MeteredLM

# Calls to a model: one question, and one that shows whether it enforces a schema.
_CALLS = 2

_REASON = "because reasoning counts too"

# Phoenix versions that the contract tests run against (requirements/phoenix.in).
_KNOWN_PHOENIX = "20."


def phoenix(parts: Connections) -> Iterator[Finding]:
    server = parts.phoenix.about()
    key = "the key may read and write" if parts.settings.phoenix_api_key else "no key is needed"
    address = f"Phoenix {server.version or 'of unknown version'} at {parts.phoenix.endpoint}, {key}"
    if not (server.version or "").startswith(_KNOWN_PHOENIX):
        yield warn(f"{address}; tested versions are {_KNOWN_PHOENIX}x", "check the first runs, or use a tested version")
    else:
        yield ok(address)
    if server.clock:
        allowed = timedelta(seconds=parts.settings.settling_seconds)
        yield compare_clocks("Phoenix", server.clock, server.asked_at, allowed)


def language_models(parts: Connections, *, call: bool) -> Iterator[Finding]:
    """Check that the key variables of the deployment's and tenants' models are set. `call` sends each a question."""
    # Imports DSPy.
    from autoopt_pipeline.lm.choice import resolve_lm, resolve_teacher

    wanted: Counter[LMSettings] = Counter()
    missing: LMNotConfigured | None = None
    own = _configs(parts)
    for config in own or [RoutingConfigUnified(tenant_id="any")]:
        try:
            lm = resolve_lm(config.lm, parts.settings)
        except LMNotConfigured as e:
            missing = e
        else:
            others = [*config.candidate_lms, *([config.judge.lm] if config.judge else [])]
            wanted.update({lm, resolve_teacher(config.teacher_lm, parts.settings, lm), *others})
    if missing:
        yield fail(missing.what, missing.remedy)
    for lm, tenants in wanted.items():
        yield _language_model(lm, f"for {tenants} tenants" if own else "by default", call=call)


def _configs(parts: Connections) -> list[RoutingConfigUnified]:
    """Return the tenants' configurations. The configuration store's check finds invalid ones."""
    configs = []
    for entry in parts.configs.current().values():
        with suppress(AutooptError):
            configs.append(entry.parse())
    return configs


def _language_model(lm: LMSettings, whose: str, *, call: bool) -> Finding:
    from autoopt_pipeline.lm.metering import Meter
    from autoopt_pipeline.lm.models import metered_lm

    if lm.model == STAND_IN:
        return warn(
            f"{whose}: the offline stand-in, which is no language model", "set AUTOOPT_LM, e.g. openai/gpt-4o-mini"
        )
    try:
        made = metered_lm(lm, Meter(max_calls=_CALLS, max_tokens=100_000))
    except AutooptError as e:
        return fail(e.what, e.remedy)
    model = f"{lm.model} {whose}" + (f"; {lm.api_key_env} is set here" if lm.api_key_env else "")
    return _called(made, model) if call else ok(model)


def _called(made: "MeteredLM", model: str) -> Finding:
    """Ask the model a short question, and find out which answer formats it supports."""
    from dspy.lm15 import Message, Request, TextPart
    from dspy.utils.exceptions import LMError

    from autoopt_pipeline.lm.metering import Outage, answer_text
    from autoopt_pipeline.lm.probe import enforces_schema

    began = time.perf_counter()
    question = Request(model=made.lm.model, system="Answer briefly.", messages=(Message.user([TextPart("Say: ok")]),))
    try:
        answer = made.lm(question)
        seconds = time.perf_counter() - began
        enforced = made.answer_format != "chat" and enforces_schema(made.lm)
    except Outage as e:
        return fail(f"{model}; it does not answer: {e.error.what}", e.error.remedy)
    except LMError as e:
        return fail(f"{model}; it does not answer: {one_line(str(e))}", "check its name, endpoint and key")
    longest = made.endpoint.values.get("max_tokens") if made.endpoint else None
    now = f"lm.max_tokens is {longest}" if longest else "lm.max_tokens is not set"
    if not answer_text(answer).strip():
        return fail(
            f"{model}; its answer is empty (it ended with {answer.finish_reason})", f"{now}: raise it, {_REASON}"
        )
    if answer.finish_reason == "length":
        return fail(f"{model}; its answer to 'Say: ok' was cut off", f"{now}: raise it, {_REASON}")
    if made.answer_format == "json_schema" and not enforced:
        return fail(f"{model}; its endpoint enforces no JSON schema", "set lm.answer_format to auto or chat")
    formats = "a JSON schema is enforced" if enforced else "answers are asked for in DSPy's chat format"
    return ok(f"{model}; it answered within {seconds:.1f} s; {formats}")
