"""How the stand-in answers: the nearest demos and the names of the labels vote."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from autoopt_pipeline.lm.stand_in.prompt import Demo, Output, read_demos, read_outputs, words

# The number of demos that vote. Three outvote one wrongly labelled neighbour.
NEIGHBOURS = 3

# The weight of a label whose name shares words with the query. A demo weighs up to 1.
_NAME_WEIGHT = 0.3

# Votes that all possible values share. They keep the confidence low while there is little evidence.
_DOUBT = 0.5

# Two words that share so many first letters count as the same word of a label's name.
_STEM = 4

NO_TEXT = "The stand-in compares wording only."


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a prompt contains beside the query.

    `choice` is the first output whose type names its values, and `constant` are the inputs that all demos share.
    """

    outputs: tuple[Output, ...]
    choice: Output | None
    demos: tuple[Demo, ...]
    constant: Mapping[str, str]


@dataclass(frozen=True)
class _Query:
    words: tuple[str, ...]
    grams: frozenset[str]


@dataclass(frozen=True)
class _Index:
    """The demos, by the wording that separates the values of one output. Demo n has `values[n]` and `norms[n]`."""

    values: tuple[str, ...]
    norms: tuple[float, ...]
    weights: dict[str, float]
    postings: dict[str, tuple[int, ...]]


@lru_cache(maxsize=64)
def read_lesson(turns: tuple[tuple[str, str], ...], system: str) -> Lesson:
    """Read a prompt's system text and its demos. Cached, because an evaluation asks many queries with them."""
    outputs = tuple(read_outputs(system))
    choice = next((output for output in outputs if output.allowed), None)
    demos = tuple(read_demos(turns))
    constant = dict(demos[0].inputs) if demos else {}
    for demo in demos[1:]:
        constant = {name: text for name, text in constant.items() if demo.inputs.get(name) == text}
    return Lesson(outputs, choice, demos, constant)


def answer(lesson: Lesson, inputs: Mapping[str, str]) -> dict[str, str]:
    """A text for every output field."""
    same = frozenset(name for name, text in lesson.constant.items() if inputs.get(name) == text)
    # An input that never differs is no evidence. If no input differs, the query is a demo, and all inputs count.
    ignored = same if len(same) < len(inputs) else frozenset()
    text = "\n".join(text for name, text in inputs.items() if name not in ignored)
    query = _Query(tuple(words(text)), _grams(text))
    chosen, confidence = "", 0.0
    agreeing: Collection[int] = range(len(lesson.demos))
    if lesson.choice:
        index = _index(lesson, ignored, lesson.choice)
        chosen, confidence = _elect(lesson.choice, _votes(index, query, agreeing), query)
        agreeing = {number for number in agreeing if index.values[number] == chosen}
    answers = {}
    for output in lesson.outputs:
        if output is lesson.choice:
            answers[output.name] = chosen
        elif output.type in {"float", "int"}:
            answers[output.name] = f"{confidence:.2f}" if output.type == "float" else str(round(confidence))
        else:
            votes = _votes(_index(lesson, ignored, output), query, agreeing)
            if output.allowed:
                answers[output.name], _ = _elect(output, votes, query)
            else:
                answers[output.name] = next(iter(votes), NO_TEXT)
    return answers


def _votes(index: _Index, query: _Query, voters: Collection[int]) -> dict[str, float]:
    """The similarities of the nearest of these demos, summed by value. The value of the nearest demo comes first."""
    votes: dict[str, float] = {}
    for number, similarity in _nearest(index, query.grams, voters):
        value = index.values[number]
        votes[value] = votes.get(value, 0.0) + similarity
    return votes


def _elect(output: Output, votes: Mapping[str, float], query: _Query) -> tuple[str, float]:
    """The value with most votes, and its share of them as a confidence. A tie goes to the value listed first."""
    scores = _by_name(output, query)
    for value, vote in votes.items():
        scores[value] = scores.get(value, 0.0) + vote
    ranked = sorted(scores, key=lambda value: -scores[value])
    total = sum(scores.values())
    possible = max(len(scores), len(output.allowed))
    return ranked[0], (scores[ranked[0]] + _DOUBT / possible) / (total + _DOUBT)


def _by_name(output: Output, query: _Query) -> dict[str, float]:
    """The votes of the labels' names: a weight for each label, or for a list one value with the named items."""
    if output.is_list:
        # One value, because items compete with the whole lists of the demos.
        items = _named_items(output.allowed, query.words)
        return {json.dumps(items or output.allowed[:1], ensure_ascii=False): _NAME_WEIGHT if items else 0.0}
    return {label: _NAME_WEIGHT * _overlap(_grams(label), query.grams) for label in output.allowed}


def _named_items(items: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The items whose names share words with the query, in the order of those words.

    A word that every name has names no item. Each word of the query names one item, the one with the largest part of
    its name in the query.
    """
    names = {item: set(words(item)) for item in items}
    common = set.intersection(*names.values()) if len(items) > 1 else set()
    claims = []
    for item in items:
        own = names[item] - common
        places = {place for place, word in enumerate(asked) if any(_alike(word, part) for part in own)}
        if places:
            named_parts = sum(any(_alike(asked[place], part) for place in places) for part in own)
            claims.append((named_parts / len(own), named_parts, places, item))
    named: dict[int, str] = {}
    claimed: set[int] = set()
    for _, _, places, item in sorted(claims, key=lambda claim: (-claim[0], -claim[1])):
        if free := places - claimed:
            named[min(free)] = item
            claimed |= free
    return [named[place] for place in sorted(named)]


def _alike(word: str, other: str) -> bool:
    return word == other or (len(word) >= _STEM and word[:_STEM] == other[:_STEM])


@lru_cache(maxsize=256)
def _index(lesson: Lesson, ignored: frozenset[str], output: Output) -> _Index:
    values: list[str] = []
    grams_of: list[frozenset[str]] = []
    values_with: dict[str, set[str]] = {}
    postings: dict[str, list[int]] = {}
    for number, demo in enumerate(lesson.demos):
        shown = demo.answers.get(output.name, "")
        value = (output.read(shown) or "") if output.allowed else shown
        text = "\n".join(text for name, text in demo.inputs.items() if name not in ignored)
        # A demo without a value does not vote.
        grams = _grams(text) if value else frozenset()
        for gram in grams:
            values_with.setdefault(gram, set()).add(value)
            postings.setdefault(gram, []).append(number)
        values.append(value)
        grams_of.append(grams)
    distinct = len(set(values) - {""})
    # A gram that few values have is better evidence than one that all values have.
    weights = {gram: math.log(1 + distinct / len(seen)) ** 2 for gram, seen in values_with.items()}
    norms = tuple(math.sqrt(sum(weights[gram] for gram in sorted(grams))) or 1.0 for grams in grams_of)
    return _Index(tuple(values), norms, weights, {gram: tuple(where) for gram, where in postings.items()})


def _nearest(index: _Index, grams: frozenset[str], voters: Collection[int]) -> list[tuple[int, float]]:
    """At most `NEIGHBOURS` demos that share most wording with the query, with their similarities, nearest first."""
    shared: dict[int, float] = {}
    for gram in sorted(grams & index.weights.keys()):  # sorted: sums of floats depend on their order
        for number in index.postings[gram]:
            shared[number] = shared.get(number, 0.0) + index.weights[gram]
    norm = math.sqrt(len(grams)) or 1.0
    scored = [(number, weight / (norm * index.norms[number])) for number, weight in shared.items() if number in voters]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:NEIGHBOURS]


def _overlap(grams: frozenset[str], other: frozenset[str]) -> float:
    return len(grams & other) / len(grams) if grams else 0.0


@lru_cache(maxsize=20_000)
def _grams(text: str) -> frozenset[str]:
    asked = words(text)
    return frozenset(asked).union(*(_character_grams(f"^{word}$") for word in asked))


def _character_grams(word: str) -> Iterable[str]:
    return {word[i : i + n] for n in (3, 4) for i in range(len(word) - n + 1)}
