"""The stand-in LM: an offline engine that answers from the nearest demo in its prompt.

It is no language model and must be called a stand-in wherever it shows. It makes the whole loop run with no
key and no network, and it is honest in the sense that it reads nothing but the prompt: the output fields with
their labels, the demos and the query. More and better demos make its answers better, instructions do not.
"""

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from dspy.lm15 import Message, Request, Response, TextPart, Usage

NEIGHBOURS = 3
"""Demos that vote. Three outvote one wrongly labelled neighbour."""

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.+?)\):", re.MULTILINE)
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]$", re.MULTILINE)
_NAME_WEIGHT = 0.3
"""Weight of a label whose own name shares words with the query, beside demos that weigh up to 1."""


class StandInEngine:
    """A DSPy engine (`complete(Request) -> Response`) without state, so threads may share it."""

    def complete(self, request: Request) -> Response:
        system = request.system if isinstance(request.system, str) else ""
        turns = [(message.role, message.text or "") for message in request.messages]
        query = _inputs(turns[-1][1])
        index = _index(tuple(turns[:-1]), system)
        answer = _answer(index, query)
        text = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in answer.items())
        # Roughly four characters make a token of English text.
        tokens_in = (len(system) + sum(len(text) for _, text in turns)) // 4
        usage = Usage(input_tokens=tokens_in, output_tokens=len(text) // 4, total_tokens=tokens_in + len(text) // 4)
        return Response(
            id="stand-in",
            model=request.model,
            message=Message.assistant([TextPart(f"{text}\n\n[[ ## completed ## ]]")]),
            finish_reason="stop",
            usage=usage,
        )


@dataclass(frozen=True)
class _Output:
    """An output field of the prompt; `labels` are its allowed answers where it names them."""

    name: str
    type: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Demo:
    label: str
    answers: dict[str, str]
    norm: float


@dataclass(frozen=True)
class _Index:
    outputs: tuple[_Output, ...]
    choice: _Output | None
    demos: tuple[_Demo, ...]
    weights: dict[str, float]
    postings: dict[str, tuple[int, ...]]


@lru_cache(maxsize=64)
def _index(turns: tuple[tuple[str, str], ...], system: str) -> _Index:
    """What a prompt teaches. Kept, because an evaluation asks many queries with the same demos."""
    outputs = tuple(_outputs(system))
    choice = next((output for output in outputs if output.labels), None)
    labelled: list[tuple[str, dict[str, str], frozenset[str]]] = []
    for (role, asked), (_, answered) in pairwise(turns):
        if role != "user":
            continue
        answers = _sections(answered)
        label = answers.get(choice.name, "") if choice else ""
        labelled.append((label, answers, _grams(_inputs(asked))))
    labels_of: dict[str, set[str]] = {}
    postings: dict[str, list[int]] = {}
    for number, (label, _, grams) in enumerate(labelled):
        for gram in grams:
            labels_of.setdefault(gram, set()).add(label)
            postings.setdefault(gram, []).append(number)
    distinct = len({label for label, _, _ in labelled})
    # A gram seen under few labels tells more about the label than one seen under all of them.
    weights = {gram: math.log(1 + distinct / len(seen)) ** 2 for gram, seen in labels_of.items()}
    demos = tuple(
        _Demo(label, answers, math.sqrt(sum(weights[gram] for gram in sorted(grams))) or 1.0)
        for label, answers, grams in labelled
    )
    return _Index(outputs, choice, demos, weights, {gram: tuple(where) for gram, where in postings.items()})


def _answer(index: _Index, query: str) -> dict[str, str]:
    nearest = _nearest(index, _grams(query))
    votes: Counter[str] = Counter()
    for number, similarity in nearest:
        votes[index.demos[number].label] += similarity  # ty: ignore[invalid-assignment]
    chosen, confidence = "", 0.0
    if index.choice:
        chosen, confidence = _elect(index.choice.labels, votes, query)
    template = next((index.demos[number].answers for number, _ in nearest if index.demos[number].label == chosen), {})
    answer = {}
    for output in index.outputs:
        if output is index.choice:
            answer[output.name] = chosen
        elif output.type in {"float", "int"}:
            answer[output.name] = f"{confidence:.2f}" if output.type == "float" else str(round(confidence))
        elif output.labels:
            value = template.get(output.name)
            answer[output.name] = value if value in output.labels else output.labels[0]
        else:
            answer[output.name] = _text(template.get(output.name))
    return answer


def _text(shown: str | None) -> str:
    """A demo's text, unless the demo has none: DSPy then says 'Not supplied for this particular example.'"""
    return shown if shown and not shown.startswith("Not supplied") else "The stand-in compares wording only."


def _elect(labels: Sequence[str], votes: Counter[str], query: str) -> tuple[str, float]:
    """The label with most votes, and its lead as a confidence; ties go to the label listed first."""
    words = _grams(query)
    scores = {label: votes.get(label, 0.0) + _NAME_WEIGHT * _overlap(_grams(label), words) for label in labels}
    ranked = sorted(labels, key=lambda label: -scores[label])
    total = sum(scores.values())
    if total <= 0:
        return ranked[0], 1 / len(labels)
    runner_up = scores[ranked[1]] if len(ranked) > 1 else 0.0
    return ranked[0], min(1.0, 0.5 + 0.5 * (scores[ranked[0]] - runner_up) / total)


def _nearest(index: _Index, grams: frozenset[str]) -> list[tuple[int, float]]:
    shared: dict[int, float] = {}
    for gram in sorted(grams & index.weights.keys()):  # sorted: sums of floats depend on their order
        for number in index.postings[gram]:
            shared[number] = shared.get(number, 0.0) + index.weights[gram]
    norm = math.sqrt(len(grams)) or 1.0
    scored = [(number, weight / (norm * index.demos[number].norm)) for number, weight in shared.items()]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:NEIGHBOURS]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one) if one else 0.0


@lru_cache(maxsize=20_000)
def _grams(text: str) -> frozenset[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(words).union(*(_character_grams(f"^{word}$") for word in words))


def _character_grams(word: str) -> Iterable[str]:
    return {word[i : i + n] for n in (3, 4) for i in range(len(word) - n + 1)}


def _outputs(system: str) -> Iterable[_Output]:
    _, _, described = system.partition("Your output fields are:")
    described, _, _ = described.partition("All interactions will be structured")
    for name, kind in _FIELD.findall(described):
        labels: tuple[str, ...] = ()
        if kind.startswith("Literal["):
            labels = tuple(str(label) for label in ast.literal_eval(kind.removeprefix("Literal")))
        yield _Output(name, kind, labels)


def _sections(text: str) -> dict[str, str]:
    parts = _SECTION.split(text)
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=False)}


def _inputs(text: str) -> str:
    asked, _, _ = text.partition("\n\nRespond with the corresponding output fields")
    return "\n".join(_sections(asked).values()) or asked
