"""What a model says in other words than it was asked for, and what is read of it."""

import json
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.lm.answer_parsing import read_json, read_label, read_number, read_sections, without_thoughts

LABELS = ("search_agent", "report_agent", "image search", "video", "C++", "text")
LABEL: Any = Literal[LABELS]  # ty: ignore[invalid-type-form]
FIELDS = {"reasoning": str, "agent": LABEL, "confidence": float}

labels = st.sampled_from(LABELS)
shares = st.integers(0, 100)

AROUND_LABELS = [
    "{}",
    "**{}**",
    "`{}`",
    '"{}"',
    "\u201c{}\u201d",
    "[{}]",
    "({})",
    "**`{}`**",
    "{}.",
    "  {}\n",
    "_{}_",
    "agent: {}",
    "**Agent:** {}",
    "{} (the one that does it)",
    "{}\n\nBecause the query asks for it.",
    "```\n{}\n```",
]

AS_SHARES = [
    lambda percent: f"{percent / 100}",
    lambda percent: f"{percent / 100:.2f}".replace(".", ","),
    lambda percent: f"{percent} %",
    lambda percent: f"{percent}%",
    lambda percent: f"{percent} percent",
    lambda percent: f"{percent}/100",
    lambda percent: f"about {percent / 100}",
    lambda percent: f"**{percent / 100}**",
    lambda percent: f"{percent / 100} (quite sure)",
    lambda percent: f"{percent / 100:.2f}".removeprefix("0") if percent < 100 else "1.0",
]

THOUGHTS = [
    "",
    '<think>\nIs it [[ ## agent ## ]]\nvideo? Or {"agent": 3}?\n</think>\n\n',
    "Is it a video? No.\n</think>\n",
    "<thinking>hm</thinking>",
]


@given(labels, st.sampled_from(AROUND_LABELS), st.sampled_from([str, str.upper, str.title]))
def test_a_label_is_read_whatever_stands_around_it(label: str, around: str, cased: Any) -> None:
    assert read_label(around.format(cased(label)), LABELS, "agent") == label


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_nothing_is_read_that_is_no_label(text: str) -> None:
    words = ("search", "report", "image", "video", "c++", "text")
    if any(word in text.casefold() for word in words):
        return
    with pytest.raises(ValueError, match="labels"):
        read_label(text, LABELS)


@pytest.mark.parametrize("text", ["video or text", "not video", "videos", "search", "", "the video agent", "text: no"])
def test_what_may_be_two_or_none_is_not_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="labels"):
        read_label(text, LABELS)


def test_labels_that_differ_by_case_only_are_told_apart_by_case() -> None:
    assert read_label("**Go**", ("go", "Go")) == "Go"
    with pytest.raises(ValueError, match="labels"):
        read_label("GO", ("go", "Go"))


@given(shares, st.sampled_from(AS_SHARES))
def test_a_share_is_read_however_it_is_written(percent: int, written: Any) -> None:
    assert read_number(written(percent)) == pytest.approx(percent / 100)


@pytest.mark.parametrize(("text", "number"), [("1,000", 1000), ("12,345.5", 12345.5), ("-3", -3), ("2e3", 2000)])
def test_other_numbers_are_read_too(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "high", "0.9 or 0.8", "1.2.3", "9/0", "0.9 and falling", "%", "nine"])
def test_what_is_no_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|float"):
        read_number(text)


@given(
    labels,
    shares,
    st.sampled_from(AROUND_LABELS),
    st.sampled_from(AS_SHARES),
    st.sampled_from(THOUGHTS),
    st.sampled_from(["\n", " "]),
    st.booleans(),
)
def test_sections_are_read_on_lines_of_their_own_or_in_one(
    label: str, percent: int, around: str, written: Any, thoughts: str, space: str, ended: bool
) -> None:
    parts = {"reasoning": "it asks for it", "agent": around.format(label), "confidence": written(percent)}
    text = thoughts + "".join(f"[[ ## {name} ## ]]{space}{value}{space}{space}" for name, value in parts.items())
    read = read_sections(text + ("[[ ## completed ## ]]" if ended else ""), FIELDS)
    assert read == {"reasoning": "it asks for it", "agent": label, "confidence": pytest.approx(percent / 100)}


@given(
    labels, shares, st.sampled_from(THOUGHTS), st.sampled_from(["{}", "```json\n{}\n```", "Sure! Here it is:\n{}\n"])
)
def test_json_is_read_with_text_and_fences_around_it(label: str, percent: int, thoughts: str, around: str) -> None:
    answer = {"reasoning": "a {brace} in it", "agent": label.upper(), "confidence": percent / 100}
    expected = {"reasoning": "a {brace} in it", "agent": label, "confidence": pytest.approx(percent / 100)}
    text = thoughts + around.format(json.dumps(answer))
    assert read_json(text, FIELDS) == expected
    assert read_sections(text, FIELDS) == expected  # also where sections were asked for


@pytest.mark.parametrize(
    "text",
    [
        '["search_agent", "video"]',
        "search_agent > video",
        "1. search_agent\n2. **video**",
        "- search_agent\n- Video",
        "search_agent, video",
        '```json\n["search_agent", "video"]\n```',
    ],
)
def test_lists_of_labels_are_read(text: str) -> None:
    assert read_sections(f"[[ ## agents ## ]]\n{text}", {"agents": list[LABEL]}) == {
        "agents": ["search_agent", "video"]
    }


@given(st.text(max_size=200))
def test_whatever_a_text_holds_reading_it_raises_a_value_error_at_most(text: str) -> None:
    for read in (read_sections, read_json):
        for around in ("{}", "[[ ## reasoning ## ]]{0}[[ ## agent ## ]]{0}[[ ## confidence ## ]]{0}", '{{"agent": {}'):
            with suppress(ValueError):
                read(around.format(text), FIELDS | {"agents": list[LABEL]})


def test_thoughts_that_do_not_end_leave_nothing() -> None:
    assert without_thoughts("<think>I wonder whether video") == ""


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no confidence in it"):
        read_sections("[[ ## reasoning ## ]]\nwhy\n[[ ## agent ## ]]\nvideo", FIELDS)
