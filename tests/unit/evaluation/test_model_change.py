"""Whether a model answers differently than before, by what it answers when it is asked again."""

import random
from datetime import UTC, datetime

import pytest

from autoopt_pipeline.evaluation.model_change import ALPHA, cannot_explain, has_changed, p_value
from autoopt_pipeline.registry.replays import ModelReplay

AT = datetime(2026, 11, 20, tzinfo=UTC)


def replay(asked: int = 24, repeated: int = 0, returned: int = 0, others: int = 0) -> ModelReplay:
    return ModelReplay(
        tenant_id="acme",
        module="routing",
        version="v1",
        at=AT,
        answered_at=AT,
        same_at=AT,
        lm="m",
        lm_before="m",
        asked=asked,
        changed=repeated + returned + others,
        repeated=repeated,
        returned=returned,
        p=p_value(asked, repeated, returned),
    )


def test_new_answers_that_are_repeated_show_another_model_and_those_that_return_do_not() -> None:
    assert [has_changed(replay(repeated=count)) for count in range(5)] == [False, False, False, True, True]
    assert not has_changed(replay(repeated=4, returned=4))
    assert not has_changed(replay(repeated=1, returned=6))
    assert has_changed(replay(repeated=6, returned=1))


def test_the_p_value_is_the_chance_under_the_least_favourable_rate() -> None:
    """The largest chance over rates, for one example: it is repeated with a chance of at most a half."""
    assert p_value(1, 1, 0) == pytest.approx(0.5, abs=0.01)
    # For two examples: both repeated, r², is as extreme as it gets; its largest value is at r = 1/2.
    assert p_value(2, 2, 0) == pytest.approx(0.25, abs=0.01)
    assert p_value(24, 0, 0) == p_value(24, 2, 2) == 1.0
    assert p_value(24, 4, 0) < p_value(24, 3, 0) < p_value(24, 3, 1)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_a_model_that_varies_is_seldom_taken_for_another_one(noise: float) -> None:
    rng = random.Random(7)

    def answer() -> int:
        return rng.choice((1, 2)) if rng.random() < noise else 0

    named, rounds = 0, 4000
    for _ in range(rounds):
        triples = [(answer(), answer(), answer()) for _ in range(24)]
        doubted = [(before, now, third) for before, now, third in triples if before != now][:6]
        repeated = sum(third == now for _, now, third in doubted)
        returned = sum(third == before for before, _, third in doubted)
        named += p_value(24, repeated, returned) <= ALPHA
    assert named / rounds <= ALPHA


def test_few_changed_answers_rule_out_a_large_loss_and_not_a_small_one() -> None:
    assert cannot_explain(replay(), loss=0.1)
    assert not cannot_explain(replay(), loss=0.05)
    assert not cannot_explain(replay(repeated=1), loss=0.1)
    assert cannot_explain(replay(asked=48), loss=0.05)
    assert cannot_explain(replay(returned=3), loss=0.1)
    assert not cannot_explain(replay(others=2), loss=0.1)
    assert not cannot_explain(replay(asked=0), loss=0.1)


def test_a_replay_says_how_many_answers_are_others() -> None:
    assert str(replay()) == "m answers all 24 held-out requests as on 2026-11-20"
    assert str(replay(repeated=2, returned=1)) == "m answers 2 of 24 held-out requests differently than on 2026-11-20"
    other = replay(repeated=2).model_copy(update={"lm_before": "old"})
    assert str(other).endswith("differently than on 2026-11-20, when it was old")
