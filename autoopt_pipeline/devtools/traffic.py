"""Generates sample traffic: requests, decisions and reviews of a tenant's application.

Pure: sends nothing (see `send`). Some decisions are wrong, some labels are noisy, some spans are malformed. Reviews are
drawn at random, regardless of the outcome, and marked as such; complaints are not. Every request has a routing span,
and optionally spans for a plan and for a fusion of two modalities.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidQueries
from autoopt_pipeline.span_contract import (
    CORRECTION,
    CROSS_MODAL_SPAN,
    MODALITY,
    ORCHESTRATION_SPAN,
    RANDOM_SAMPLING,
    REVIEW_SAMPLE,
    ROUTING,
    ROUTING_SPAN,
)
from autoopt_pipeline.tenants.config import Agent

SAMPLE_AGENTS = {
    "search_agent": "finds things that exist already",
    "summary_agent": "makes long things short",
    "report_agent": "works numbers and comparisons out",
    "support_agent": "helps when something does not work",
}

_ASKS = {
    "search_agent": (
        "where did we put {0}", "pull up {0}", "track down {0}", "got a link for {0}?", "dig out {0}",
        "can you get me {0}", "which folder holds {0}", "looking for {0}", "need to lay hands on {0}",
        "who has a copy of {0}",
    ),
    "summary_agent": (
        "gist of {0}", "boil {0} down to five lines", "tl;dr {0}", "what are the takeaways from {0}",
        "condense {0} for the board", "short version of {0} please", "sum {0} up", "main points in {0}",
        "i have two minutes, what does {0} say", "skim {0} for me",
    ),
    "report_agent": (
        "break {0} down by region", "how does {0} stack up against last year", "deep dive into {0}",
        "work out the trend across {0}", "compare {0} with what rivals do", "crunch the figures in {0}",
        "benchmark {0} and write it up", "analyse {0} month by month", "quantify the impact of {0}",
        "rank everything in {0} by cost",
    ),
    "support_agent": (
        "{0} will not open on my laptop", "i keep getting an error with {0}", "why is {0} blank",
        "locked out of {0} again", "{0} crashes halfway", "permission denied for {0}",
        "{0} stopped loading since the update", "how do i unlock {0}", "cannot upload {0}",
        "{0} looks garbled on my phone",
    ),
}  # fmt: skip
_THINGS = {
    "video": ("webcast", "keynote stream", "dashcam bit", "screen capture", "training walkthrough", "town hall replay",
              "drone flyover", "teaser", "livestream", "interview on camera"),
    "image": ("poster", "blueprint", "screenshot", "mockup", "whiteboard snap", "site map", "logo", "satellite view",
              "infographic", "x-ray scan"),
    "audio": ("voicemail", "podcast episode", "dictation", "jingle", "hotline tape", "ringtone", "radio spot",
              "soundtrack", "voice memo", "choir take"),
    "document": ("handbook", "invoice", "policy", "tender", "spec sheet", "minutes", "white paper", "deed", "syllabus",
                 "audit file"),
    "text": ("ticket thread", "release blurb", "email reply", "chat log", "tagline", "forum post", "changelog entry",
             "status update", "bio", "faq wording"),
}  # fmt: skip
_TOPICS = (
    "onboarding", "the harbour project", "payroll", "the spring launch", "warehouse safety", "supplier prices",
    "the berlin office", "churn", "the solar roof", "travel costs", "the merger", "patient intake", "fleet upkeep",
    "the new cafeteria", "visa rules", "the pension plan", "quarterly sales", "the ferry line", "recycling",
    "the chess club", "customer nps", "firmware 4.2", "the water leak", "store hours", "the mentoring scheme",
)  # fmt: skip
_LINKS = ("about {0}", "on {0}", "for {0}", "from the {0} folks", "regarding {0}", "re {0}", "concerning {0}")
_BOTH = (" and the ", " together with the ", " next to the ", " alongside the ", " plus the ", " against the ")
_OPENERS = (
    "",
    "",
    "",
    "",
    "hi, ",
    "hey ",
    "ok so ",
    "quick one: ",
    "morning! ",
    "please ",
    "sorry to bug you, ",
)
_TAILS = (
    "",
    "",
    "",
    "",
    "",
    " thanks",
    " asap",
    " before noon",
    " if possible",
    " - it is for marta",
    " again",
)
_NEXT = {
    ("search_agent", "summary_agent"): ("find {0} and give me the short version", "locate {0}, then boil it down"),
    ("search_agent", "report_agent"): ("get hold of {0} and crunch its figures", "fetch {0}, then benchmark it"),
    ("report_agent", "summary_agent"): ("analyse {0} and condense what comes out", "work {0} out, then sum it up"),
}
_TOGETHER = {
    ("summary_agent", "support_agent"): (
        "the gist of {0} while you get it to open",
        "tl;dr {0}, and unlock it as well",
    ),
    ("report_agent", "support_agent"): ("break {0} down, and mend the error in it too", "rank {0} and unblock it both"),
}
_ANNOTATIONS = {"agent": ROUTING.annotation, "modality": MODALITY.annotation}
_VAGUE = (
    "same as last time", "you know the one", "and the other thing too", "what i asked yesterday", "the usual please",
    "can you redo that", "hmm not that one", "next one please", "try once more", "no, the older one",
)  # fmt: skip


@dataclass(frozen=True)
class SyntheticRequest:
    """A request and its right answers by output field.

    `agents` and `pattern` are set if a plan of several agents is known. `modalities` is set if the request is about two
    kinds of content (it names both) or about one (the second is only apparent).
    """

    query: str
    answers: dict[str, str]
    agents: tuple[str, ...] = ()
    parallel: bool = False
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Review:
    """One annotation of a span, by a person or a judge."""

    name: str
    kind: Literal["HUMAN", "LLM"]
    label: str | None
    metadata: dict[str, str]
    score: float | None = None


@dataclass(frozen=True)
class PlayedSpan:
    """One decision of the application, as sent to Phoenix."""

    name: str
    attributes: dict[str, Any]
    failed: bool = False
    reviews: tuple[Review, ...] = ()


@dataclass(frozen=True)
class PlayedRequest:
    """One request: the spans of its decisions, routing first. `seconds` is its duration."""

    time: datetime
    seconds: float
    spans: tuple[PlayedSpan, ...]

    @property
    def reviews(self) -> tuple[Review, ...]:
        return tuple(review for span in self.spans for review in span.reviews)


@dataclass(frozen=True)
class TrafficProfile:
    """Behavior of the simulated application and its users. Shares are from 0 to 1."""

    right: float = 0.7
    reviewed: float = 0.75
    complains: float = 0.1
    malformed: float = 0.03
    openinference: bool = False
    answers_depend_on_query: bool = True
    plans: bool = False
    fuses: bool = False


def sample_truths(
    count: int, rng: random.Random, *, planned: float = 0.0, mixed: float = 0.12
) -> Iterator[SyntheticRequest]:
    """Generate requests for the agents of `SAMPLE_AGENTS`, with varied wording, typing errors and vague ones.

    A share `planned` needs several agents, and a share `mixed` is about two kinds of content.
    """
    for _ in range(count):
        kinds = rng.sample(list(_THINGS), 2)
        both = rng.random() < mixed
        thing = rng.choice(_BOTH).join(rng.choice(_THINGS[kind]) for kind in (kinds if both else kinds[:1]))
        about = f"the {thing} {rng.choice(_LINKS).format(rng.choice(_TOPICS))}"
        parallel = False
        if rng.random() < planned:
            parallel = rng.random() < 0.4
            agents, wordings = rng.choice(list((_TOGETHER if parallel else _NEXT).items()))
        else:
            agent = rng.choice(list(_ASKS))
            agents, wordings = (agent,), _ASKS[agent]
        query = rng.choice(_OPENERS) + rng.choice(wordings).format(about) + rng.choice(_TAILS)
        if rng.random() < 0.03:
            query = rng.choice(_VAGUE)
        answers = {"agent": agents[0], "modality": "mixed" if both else kinds[0]}
        yield SyntheticRequest(_with_typing_errors(query, rng), answers, agents, parallel, tuple(kinds))


def sample_truths_for(habits: TrafficProfile, count: int, rng: random.Random) -> Iterator[SyntheticRequest]:
    """Generate requests that let every decision of the application be learnt."""
    return sample_truths(count, rng, planned=0.35 if habits.plans else 0.0, mixed=0.5 if habits.fuses else 0.12)


def read_truths(
    path: Path, query_field: str, label_field: str, agents: Sequence[str] | None = None
) -> list[SyntheticRequest]:
    """Read labelled queries from a JSON lines file. By default any label may be an agent.

    Raises `InvalidQueries` with the line number.
    """
    truths = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidQueries(f"{path}: {e}", "give a readable file of JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            query, label = row[query_field], row[label_field]
        except (ValueError, TypeError, KeyError) as e:
            raise InvalidQueries(
                f"{path}, line {number}: {type(e).__name__} {e}",
                f"each line is a JSON object with {query_field!r} and {label_field!r}; name other fields with "
                "--query-field and --label-field",
            ) from None
        if agents is None:
            _check_agent(path, number, label)
        elif label not in agents:
            raise InvalidQueries(
                f"{path}, line {number}: {str(label)[:60]!r} is no agent of the tenant",
                f"its agents are {', '.join(agents) or '(none)'}; set them with 'autoopt config set TENANT agents=...'",
            )
        if not isinstance(query, str) or not query.strip():
            raise InvalidQueries(f"{path}, line {number}: {query_field!r} is no text", "give the query as text")
        truths.append(SyntheticRequest(query, {"agent": str(label)}))
    if not truths:
        raise InvalidQueries(f"{path} has no queries", "give one JSON object a line")
    return truths


def _check_agent(path: Path, number: int, label: object) -> None:
    try:
        Agent(name=label)  # ty: ignore[invalid-argument-type] - it may be anything
    except ValidationError:
        raise InvalidQueries(
            f"{path}, line {number}: {str(label)[:60]!r} is no name of an agent",
            "use up to 100 letters, digits, '_', '.' and '-', the first a letter or a digit",
        ) from None


def simulate_requests(
    truths: Sequence[SyntheticRequest],
    choices: Mapping[str, Sequence[str]],
    habits: TrafficProfile,
    *,
    start: datetime,
    end: datetime,
    rng: random.Random,
) -> Iterator[PlayedRequest]:
    """Simulate an application's decision on each request. `choices` are all possible answers by output field."""
    for number, truth in enumerate(truths):
        time = start + (end - start) * ((number + rng.random()) / len(truths))
        # Drawn before the outcome is known, which is what makes a review fit to judge with.
        drawn = rng.random() < habits.reviewed
        spans = [_routed(truth, choices, habits, drawn, rng)]
        if habits.plans and truth.agents:
            spans.append(_planned(truth, choices["agent"], habits, drawn, rng))
        if habits.fuses and truth.modalities:
            spans.append(_fused(truth, habits, drawn, rng))
        yield PlayedRequest(time, rng.uniform(0.05, 0.9), tuple(spans))


def _routed(
    truth: SyntheticRequest,
    choices: Mapping[str, Sequence[str]],
    habits: TrafficProfile,
    drawn: bool,
    rng: random.Random,
) -> PlayedSpan:
    right = truth.answers
    if not habits.answers_depend_on_query:
        right = {name: rng.choice(list(choices[name])) for name in right}
    chosen = {
        name: answer if rng.random() < habits.right else rng.choice(list(choices[name]))
        for name, answer in right.items()
    }
    all_right = chosen == right
    success = _succeeds(all_right, rng)
    reviews = tuple(_reviews(chosen, right, rng)) if drawn else ()
    if not drawn and not all_right and rng.random() < habits.complains:
        reviews = tuple(_complaints(chosen, right))
    attributes = _attributes(truth.query, chosen, _confidence(all_right, rng), success, habits)
    attributes[REVIEW_SAMPLE] = drawn
    if rng.random() < habits.malformed:
        attributes, reviews = _malformed(attributes, rng), ()
    return PlayedSpan(ROUTING_SPAN, attributes, not success and rng.random() < 0.3, reviews)


def _planned(
    truth: SyntheticRequest, agents: Sequence[str], habits: TrafficProfile, drawn: bool, rng: random.Random
) -> PlayedSpan:
    plans = [*((agent,) for agent in agents), *_NEXT, *_TOGETHER]
    right, parallel = truth.agents, truth.parallel
    if not habits.answers_depend_on_query:
        # One agent: with several, a plan that overlaps with most others would be worth learning.
        right, parallel = (rng.choice(list(agents)),), False
    chosen, side_by_side = right, parallel
    if rng.random() >= habits.right:
        chosen = rng.choice(plans)
        side_by_side = chosen in _TOGETHER
    all_right = (chosen, side_by_side) == (right, parallel)
    success = _succeeds(all_right, rng)
    attributes = {
        "orchestration.query": truth.query,
        "orchestration.execution_order": ",".join(chosen),
        "orchestration.pattern": "parallel" if side_by_side else "sequential",
        "orchestration.confidence": _confidence(all_right, rng),
        "orchestration.success": success,
        REVIEW_SAMPLE: drawn,
    }
    reviews = ()
    if drawn:
        wanted = (" + " if parallel else " > ").join(right)
        reviews = (_review("workflow_annotation", all_right, wanted, rng),)
    return PlayedSpan(ORCHESTRATION_SPAN, attributes, reviews=reviews)


def _fused(truth: SyntheticRequest, habits: TrafficProfile, drawn: bool, rng: random.Random) -> PlayedSpan:
    """Simulate a detector that always sees a second modality. Fusing only gains if the request is about both."""
    gains = truth.answers["modality"] == "mixed" if habits.answers_depend_on_query else rng.random() < 0.5
    fused = gains if rng.random() < habits.right else rng.random() < 0.5
    gain = rng.gauss(0.3, 0.08) if gains else rng.gauss(-0.1, 0.05)
    quality = min(max(0.6 + (gain if fused else 0) + rng.gauss(0, 0.05), 0), 1)
    confidences = sorted((round(rng.uniform(0.4, 0.95), 2) for _ in truth.modalities), reverse=True)
    detected = [{"modality": m, "confidence": c} for m, c in zip(truth.modalities, confidences, strict=True)]
    attributes = {
        "cross_modal.query": truth.query,
        "cross_modal.detected_modalities": json.dumps(detected),
        "cross_modal.fused": fused,
        "cross_modal.primary": truth.modalities[0],
        "cross_modal.secondary": truth.modalities[1] if fused else "none",
        "cross_modal.confidence": _confidence(fused == gains, rng),
        "cross_modal.quality": round(quality, 3),
        REVIEW_SAMPLE: drawn,
    }
    reviews = ()
    if drawn:
        if rng.random() < 0.5:  # a measured gain, which does not name the modalities
            reviews = (Review("cross_modal_annotation", "HUMAN", None, dict([RANDOM_SAMPLING]), round(gain, 3)),)
        else:
            wanted = f"fuse: {' + '.join(truth.modalities)}" if gains else f"single: {truth.modalities[0]}"
            reviews = (_review("cross_modal_annotation", fused == gains, wanted, rng),)
    return PlayedSpan(CROSS_MODAL_SPAN, attributes, reviews=reviews)


def _succeeds(all_right: bool, rng: random.Random) -> bool:
    """Simulate users, who notice most failures and sometimes reject a right answer."""
    return rng.random() < (0.95 if all_right else 0.3)


def _confidence(all_right: bool, rng: random.Random) -> float:
    return round(min(0.99, max(0.05, rng.gauss(0.82 if all_right else 0.68, 0.12))), 2)


def _attributes(
    query: str, chosen: dict[str, str], confidence: float, success: bool, habits: TrafficProfile
) -> dict[str, Any]:
    if habits.openinference:
        return {
            "openinference.span.kind": "CHAIN",
            "input.value": json.dumps({"query": query}),
            "input.mime_type": "application/json",
            "output.value": json.dumps({**chosen, "confidence": confidence, "success": success}),
            "output.mime_type": "application/json",
        }
    named = {"agent": "routing.chosen_agent", "modality": "routing.modality"}
    return {
        "routing.query": query,
        **{named[name]: answer for name, answer in chosen.items()},
        "routing.confidence": confidence,
        "routing.success": success,
    }


def _reviews(chosen: dict[str, str], right: dict[str, str], rng: random.Random) -> Iterator[Review]:
    for name, answer in right.items():
        yield _review(_ANNOTATIONS[name], chosen[name] == answer, answer, rng)


def _review(annotation: str, right: bool, answer: str, rng: random.Random) -> Review:
    """Simulate a review. People err rarely, judges a little more; an error takes a wrong decision for a right one."""
    metadata = dict([RANDOM_SAMPLING])
    if right or rng.random() >= 0.99:
        return Review(annotation, "HUMAN", "correct", metadata)
    return Review(annotation, "HUMAN", "wrong", {**metadata, CORRECTION: answer})


def _complaints(chosen: dict[str, str], right: dict[str, str]) -> Iterator[Review]:
    for name, answer in right.items():
        if chosen[name] != answer:
            yield Review(_ANNOTATIONS[name], "HUMAN", "wrong", {CORRECTION: answer})


def _malformed(attributes: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return attributes of broken instrumentation."""
    broken = dict(attributes)
    query_key = "input.value" if "input.value" in broken else "routing.query"
    match rng.randrange(3):
        case 0:
            del broken[query_key]
        case 1:
            broken[query_key] = "" if query_key == "routing.query" else "{not json"
        case _:
            broken[query_key] = 42
    return broken


def _with_typing_errors(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 4 and rng.random() < 0.04:
            at = rng.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
