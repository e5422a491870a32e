from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.catalog import get_module

PLAN, FUSION, UNIFIED = get_module("workflow"), get_module("cross_modal"), get_module("unified")

plans = st.fixed_dictionaries(
    {
        "agents": st.lists(st.sampled_from("abcd"), min_size=1, max_size=5),
        "pattern": st.sampled_from(["sequential", "parallel"]),
    }
)


@given(plans, plans)
def test_a_plan_scores_from_0_to_1_and_only_itself_fully(right: dict, given_plan: dict) -> None:
    score = PLAN.score(right, given_plan)
    assert 0 <= score <= 1
    assert PLAN.score(right, right) == 1
    if sorted(right["agents"]) != sorted(given_plan["agents"]):
        assert score < 1
    if not set(right["agents"]) & set(given_plan["agents"]):
        assert score <= 0.2


def test_a_plan_gets_partial_credit_by_order() -> None:
    right = {"agents": ["a", "b", "c"], "pattern": "sequential"}

    def score(*agents: str, pattern: str = "sequential") -> float:
        return round(PLAN.score(right, {"agents": list(agents), "pattern": pattern}), 3)

    assert score("a", "b", "c") == 1
    assert score("a", "b", "c", pattern="parallel") == 0.8
    assert score("a", "c") == score("b", "c") == round(0.8 * 2 / 3 + 0.2, 3)
    assert score("c", "b", "a") == round(0.8 / 3 + 0.2, 3)
    assert score("a", "b", "c", "d") == round(0.8 * 3 / 4 + 0.2, 3)
    assert score() == 0


def test_side_by_side_the_order_says_nothing() -> None:
    right = {"agents": ["a", "b"], "pattern": "parallel"}
    assert PLAN.score(right, {"agents": ["b", "a"], "pattern": "parallel"}) == 1


def test_one_agent_has_no_pattern_to_get_right() -> None:
    right = {"agents": ["a"], "pattern": "sequential"}
    assert PLAN.score(right, {"agents": ["a"], "pattern": "parallel"}) == 1


def test_a_wrong_decision_to_fuse_scores_nothing_whatever_it_names() -> None:
    right = {"fuse": "fuse", "primary": "video", "secondary": "text"}
    assert FUSION.score(right, right) == 1
    assert FUSION.score(right, {**right, "fuse": "single"}) == 0
    assert FUSION.score(right, {**right, "primary": "text", "secondary": "video"}) == 0.5
    assert FUSION.score({"fuse": "single"}, {"fuse": "single", "primary": "audio"}) == 1


def test_the_whole_scores_the_mean_of_its_parts() -> None:
    right = {"modality": "video", "agent": "a", "agents": ["a"], "pattern": "sequential"}
    assert UNIFIED.score(right, right) == 1
    assert round(UNIFIED.score(right, {**right, "agent": "b"}), 3) == 0.667


def test_labels_are_written_as_annotators_write_them() -> None:
    from autoopt_pipeline.modules.builtin.workflow import parse_plan

    for label in ("a", "a > b", "a + b"):
        assert PLAN.label(parse_plan(label)) == label
    assert parse_plan("a, b") == {"agents": ["a", "b"], "pattern": "sequential"}
