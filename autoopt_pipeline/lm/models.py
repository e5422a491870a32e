"""Creates language models from settings: any that DSPy supports, or the stand-in."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMError
from pydantic import ValidationError

from autoopt_pipeline.errors import AutooptError, InvalidConfig, LMNotConfigured
from autoopt_pipeline.lm.choice import resolve_candidates, resolve_lm, resolve_teacher, with_price
from autoopt_pipeline.lm.endpoint import EndpointEngine
from autoopt_pipeline.lm.failures import as_error
from autoopt_pipeline.lm.metering import Answers, Engine, Meter, MeteredEngine, Role
from autoopt_pipeline.lm.prices import known_price
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.answer_format import CHAT
from autoopt_pipeline.modules.named_model import models_asked
from autoopt_pipeline.settings import STAND_IN, Settings, read_secret
from autoopt_pipeline.tenants.config import AnswerFormatChoice, LMPrice, LMSettings, RoutingConfigUnified
from autoopt_pipeline.validation import first_error

# Default answer limit in tokens: an answer is a few short fields, an instruction a page.
_MAX_TOKENS = {Role.ANSWERS: 512, Role.TEACHER: 4096, Role.JUDGE: 512}

# Where the price of a model is set.
_PRICE_FIELDS = {
    Role.ANSWERS: "lm.price or AUTOOPT_LM_PRICE, or the price in candidate_lms",
    Role.TEACHER: "teacher_lm.price or AUTOOPT_TEACHER_LM_PRICE",
    Role.JUDGE: "judge.lm.price",
}


@dataclass(frozen=True)
class MeteredLM:
    """A language model whose calls are all counted. The stand-in has no `endpoint`.

    `others` are the models, by name, that are asked instead of it by predictors that name them.
    """

    lm: dspy.LM
    meter: Meter
    name: str
    threads: int
    is_stand_in: bool
    answer_format: AnswerFormatChoice = CHAT
    endpoint: EndpointEngine | None = None
    price: LMPrice | None = None
    others: Mapping[str, "MeteredLM"] = field(default_factory=dict)

    @property
    def models(self) -> Mapping[str, "MeteredLM"]:
        """All models that programs can ask, by name. The first one is asked by predictors that name none."""
        return {self.name: self, **self.others}

    def threads_for(self, program: dspy.Module) -> int:
        """Return how many calls of a program may run at once: no more than any model that it asks allows."""
        asked = [self.models[name].threads for name in models_asked(program, self.name) if name in self.models]
        return min(asked, default=self.threads)

    def names_asked_by(self, program: dspy.Module) -> str:
        """Return the models that a program asks, as its manifest names them."""
        return ", ".join(self.models[name].name for name in models_asked(program, self.name))


@dataclass(frozen=True)
class RunLMs:
    """The language models of one run, with one meter: which answers, which teaches, and which judges, if any."""

    answering: MeteredLM
    teacher: MeteredLM
    judge: MeteredLM | None


def lms_of_run(
    config: RoutingConfigUnified, settings: Settings, meter: Meter, answers: Answers | None = None
) -> RunLMs:
    """Create the models of a run of this tenant. Raises `LMNotConfigured` as `metered_lm` does."""
    teacher = resolve_teacher(config.teacher_lm, settings, resolve_lm(config.lm, settings))
    judge = with_price(config.judge.lm, settings) if config.judge else None
    return RunLMs(
        answering_lms(config, settings, meter, answers),
        metered_lm(teacher, meter, Role.TEACHER, answers),
        metered_lm(judge, meter, Role.JUDGE, answers) if judge else None,
    )


def answering_lms(
    config: RoutingConfigUnified, settings: Settings, meter: Meter, answers: Answers | None = None
) -> MeteredLM:
    """Create the tenant's language model, with its candidate models as `others`.

    A candidate model that cannot be created fails when it is asked, as one whose endpoint does not answer. Raises
    `LMNotConfigured` as `metered_lm` does, for the tenant's own.
    """
    own = resolve_lm(config.lm, settings)
    others = {lm.model: _other(lm, meter, answers) for lm in resolve_candidates(config, settings)}
    return replace(metered_lm(own, meter, answers=answers), others=others)


def _other(settings: LMSettings, meter: Meter, answers: Answers | None) -> MeteredLM:
    try:
        return metered_lm(settings, meter, answers=answers)
    except LMNotConfigured as e:
        engine = MeteredEngine(_Unusable(e), settings.model, meter, Role.ANSWERS)
        return MeteredLM(_dspy_lm(settings.model, engine), meter, settings.model, settings.concurrency, False)


@dataclass(frozen=True)
class _Unusable:
    """An engine that cannot be asked."""

    error: AutooptError

    def complete(self, request: Request) -> Response:
        raise self.error


def metered_lm(
    settings: LMSettings, meter: Meter, role: Role = Role.ANSWERS, answers: Answers | None = None
) -> MeteredLM:
    """Create the language model. `answers` caches its answers; by default they are cached as long as the model exists.

    Raises `LMNotConfigured` if its key is missing, a setting is invalid, or the meter limits dollars and its price is
    unknown.
    """
    price = known_price(settings)
    if meter.max_dollars is not None and price is None:
        raise LMNotConfigured(
            f"language model {settings.model}: its price is unknown, and a budget is set in dollars",
            f"set {_PRICE_FIELDS[role]}, in dollars for a million tokens, or set the budget in tokens",
        )
    if settings.model == STAND_IN:
        stand_in = MeteredEngine(StandInEngine(), STAND_IN, meter, role, price=price)
        # The stand-in only computes, so threads would only compete for the interpreter's lock.
        return MeteredLM(
            _dspy_lm(f"{STAND_IN}/nearest-demo", stand_in), meter, STAND_IN, threads=1, is_stand_in=True, price=price
        )
    endpoint = _endpoint(settings, role)
    engine = MeteredEngine(
        endpoint,
        settings.model,
        meter,
        role,
        endpoint.configure,
        answers,
        settings.api_base or "",
        price,
    )
    return MeteredLM(
        _dspy_lm(settings.model, engine),
        meter,
        settings.model,
        settings.concurrency,
        is_stand_in=False,
        answer_format=settings.answer_format,
        endpoint=endpoint,
        price=price,
    )


def plain_lm(**fields: Any) -> dspy.LM:
    """Return a model without metering, with the same requests as a run. `fields` are those of `LMSettings`.

    Raises `InvalidConfig` for an invalid field, and `LMNotConfigured` like `metered_lm`.
    """
    try:
        settings = LMSettings(**fields)
    except ValidationError as e:
        raise InvalidConfig(f"language model {fields.get('model')}: {first_error(e)}", "correct it") from None
    return _dspy_lm(settings.model, _endpoint(settings, Role.ANSWERS))


def _endpoint(settings: LMSettings, role: Role) -> EndpointEngine:
    key = _key(settings)
    try:
        return EndpointEngine(settings, key, _MAX_TOKENS[role])
    except (LMError, ValueError) as e:
        raise as_error(settings.model, e) from None


def _dspy_lm(model: str, engine: Engine) -> dspy.LM:
    return dspy.LM(model, engine=engine, cache=False, num_retries=0)


def _key(settings: LMSettings) -> str | None:
    if settings.api_key_env:
        key = read_secret(settings.api_key_env)
        if not key:
            raise LMNotConfigured(
                f"language model {settings.model}: environment variable {settings.api_key_env} is not set",
                "set it to the key, where runs are executed",
            )
        return key
    # Self-hosted servers often need no key, but the client requires one.
    return "none" if settings.api_base else None
