"""Scores answers from 0 to 1 and names them in one word. Pure; does not import DSPy."""

from collections.abc import Sequence

from autoopt_pipeline.modules.spec import Grading, ModuleSpec, Values

SEQUENTIAL, PARALLEL = "sequential", "parallel"

FUSE, SINGLE = "fuse", "single"

# For a plan of several agents: weight of the right agents in the right order. The rest is for the pattern.
ORDER_WEIGHT = 0.8

# For a fusion: weight of the decision. The rest is for naming its modalities. A wrong decision scores 0.
FUSION_WEIGHT = 0.5


def _exact(spec: ModuleSpec, right: Values, answer: Values) -> float:
    return float(answer.get(spec.output_field) == right[spec.output_field])


def _first_output(spec: ModuleSpec, values: Values) -> str:
    return str(values[spec.output_field])


def _fusion(spec: ModuleSpec, right: Values, answer: Values) -> float:
    """Score the decision first, then the modalities if the right ones are known."""
    if answer.get("fuse") != right["fuse"]:
        return 0.0
    named = [field for field in ("primary", "secondary") if field in right]
    if not named:
        return 1.0
    share = sum(answer.get(field) == right[field] for field in named) / len(named)
    return FUSION_WEIGHT + (1 - FUSION_WEIGHT) * share


def _fusion_text(spec: ModuleSpec, values: Values) -> str:
    named = [str(values[field]) for field in ("primary", "secondary") if values.get(field) not in (None, "none")]
    return f"{values['fuse']}: {' + '.join(named)}"


def _plan(spec: ModuleSpec, right: Values, answer: Values) -> float:
    """Score the longest common sequence of agents, divided by the length of the longer plan.

    In parallel plans order does not count, so the sets of agents are compared. A plan with one agent has no pattern.
    """
    expected, answered = right["agents"], answer.get("agents")
    if not isinstance(answered, list | tuple) or not answered:
        return 0.0
    in_parallel = right.get("pattern") == PARALLEL
    shared = _common(sorted(expected), sorted(answered)) if in_parallel else _common(expected, answered)
    share = shared / max(len(expected), len(answered))
    if len(expected) < 2 or "pattern" not in right:
        return share
    same_pattern = len(answered) > 1 and answer.get("pattern") == right["pattern"]
    return ORDER_WEIGHT * share + (1 - ORDER_WEIGHT) * same_pattern


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    longest = [0] * (len(second) + 1)
    for mine in first:
        before = 0
        for i, theirs in enumerate(second, 1):
            before, longest[i] = longest[i], before + 1 if mine == theirs else max(longest[i], longest[i - 1])
    return longest[-1]


def plan_label(spec: ModuleSpec, values: Values) -> str:
    """Return `a > b` for a sequential plan, `a + b` for a parallel one."""
    sign = " + " if values.get("pattern") == PARALLEL else " > "
    return sign.join(values["agents"])


def _whole(spec: ModuleSpec, right: Values, answer: Values) -> float:
    """Return the mean score of the parts."""
    scores = [part.score(right, answer) for part in spec.parts]
    return sum(scores) / len(scores)


EXACT = Grading(_exact, _first_output)
FUSION = Grading(_fusion, _first_output, _fusion_text)
PLAN = Grading(_plan, plan_label)
WHOLE = Grading(_whole, plan_label)
