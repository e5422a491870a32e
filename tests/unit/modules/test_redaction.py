import sys
import unicodedata
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.redaction import load_redaction, redact
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.settings import Settings
from tests.support.sample_decisions import decision

SEPARATORS = [
    character
    for character in map(chr, range(sys.maxunicode))
    if unicodedata.category(character) in {"Zs", "Zl", "Zp", "Pd", "Cf"}
]
"""All that Unicode calls a space, a line or paragraph separator, a dash, or format."""

separators = st.lists(
    st.sampled_from([*SEPARATORS, *"()/.-\t\n·•\u30fb\ufe52\uff0e\uff0f\uff08\uff09\x00\ufffd\ufe0f"]), max_size=3
).map("".join)
invisible = st.sampled_from([character for character in SEPARATORS if unicodedata.category(character) == "Cf"])
digits = st.sampled_from("0123456789\u0660\u0663\uff19")
neighbours = st.text(st.sampled_from("abzßéя語_,:;#!?'\"") | st.characters(categories=["L"]), max_size=4)


def joined(characters: list[str], between: list[str]) -> str:
    return characters[0] + "".join(f"{gap}{character}" for gap, character in zip(between, characters[1:], strict=False))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to marta.lee+x@mail.example.org now", "write to <mail> now"),
        ("a.b@x.y+c@d.e, a@b@c.d", "<mail><mail>, a@<mail>"),
        ("call +49 (0)30 1234-5678 please", "call <number> please"),
        ("card 4111 1111 1111 1111", "card <number>"),
        ("my key is sk-proj_abcdefgh12345", "my key is <key>"),
        ("AKIAIOSFODNN7EXAMPLE leaked", "<key> leaked"),
        ("token eyJhbGciOi.eyJzdWIi.c2ln", "token <key>"),
        ("hash 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "hash <key>"),
        ("call 0170\u2009123\u20094567 or 630\u2011555\u20110111", "call <number> or <number>"),
        ("0170·123·4567, 090\u30fc1234\u30fc5678", "<number>, <number>"),
        (
            "marta\u200b@example.com, marta\xa0@\xa0my\u2011company.com, marta\uff20example\uff0ecom",
            "<mail>, <mail>, <mail>",
        ),
        ("the key sk\u2011pro\u200bj_abcdefgh12345", "the key <key>"),
        ("tel0170 1234567please", "tel<number>please"),
        ("x4111111111111111", "x<number>"),
        ("cards 4111-11-1111111111, 2024-15-99 1234", "cards <number>, <number>"),
        ("0170.12.20245", "<number>"),
        ("4111-11-11 12345678", "<number>"),
        ("29.02.2023 - 30.02.2024", "<number>"),
    ],
)
def test_personal_data_and_secrets_are_taken_out(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "compare 2024 with 2025",
        "from 2024-01-15 to 2025-02-28",
        "15.01.2024 - 28.02.2025",
        "15.01.2024-28.02.2025",
        "2024-01-15/2025-02-28, 2024/01/15\u20132025/02/28",
        "(2024-02-29) 01/31/2024 - 31/01/2025.",
        "2024\u201101\u201115\u20092025\u201102\u201128",
        "2024-01-15 12345678",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 👩\u200d💻 co\xadoperate",
        "order 1234567",
        "firmware 4.2.1 at 10:30",
        "the top 100, 200 and 300",
        "reply @marta about the roof",
    ],
)
def test_dates_and_plain_numbers_stay(text: str) -> None:
    assert redact(text) == text


@given(
    st.lists(digits, min_size=9, max_size=20), st.lists(separators, min_size=20, max_size=20), neighbours, neighbours
)
def test_no_separator_and_no_neighbour_keeps_a_number_from_being_found(
    number: list[str], between: list[str], before: str, after: str
) -> None:
    clean = redact(f"{before}{joined(number, between)}{after}")
    # What is around it stays; of many digits and letters in one word a key may be thought.
    assert clean in {f"{before}<number>{after}", f"{before}+<number>{after}"} or "<key>" in clean
    assert not any(character.isdigit() for character in clean)


@given(st.data(), st.sampled_from(["marta.lee+x@mail.example.org", "a@b.co"]))
def test_nothing_invisible_keeps_an_address_from_being_found(data: st.DataObject, address: str) -> None:
    gaps = data.draw(st.lists(invisible | st.just(""), min_size=len(address), max_size=len(address)))
    assert redact(f"write to {joined([*address], gaps)} now") == "write to <mail> now"


@given(
    st.dates(date(1900, 1, 1), date(2099, 12, 31)),
    st.dates(date(1900, 1, 1), date(2099, 12, 31)),
    st.sampled_from(["%Y{}%m{}%d", "%d{}%m{}%Y", "%m{}%d{}%Y"]),
    st.sampled_from(["-", "/", "."]),
    st.sampled_from([" ", " - ", " \u2013 ", "\u2009", " (", ") "]),
)
def test_dates_of_the_calendar_stay(first: date, last: date, order: str, mark: str, between: str) -> None:
    pattern = order.format(mark, mark)
    text = f"from{first.strftime(pattern)}{between}{last.strftime(pattern)}."
    assert redact(text) == text


@given(
    st.text()
    | st.text("a1@.+- ()/", max_size=60)
    | st.lists(
        st.sampled_from(["1", "2", "a", "@", ".", "/", "-", "2024-01-15", *"\xa0\u200b\u2011\uff20\uff0e+_ "]),
        max_size=60,
    ).map("".join)
)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


def test_examples_of_every_module_are_redacted_and_counted() -> None:
    spec = get_module("routing")
    attributes = {"routing.query": "mail bob@x.org", "routing.chosen_agent": "a", "routing.confidence": 0.9}
    plain = {**attributes, "routing.query": "find it"}
    found = spec.build_examples([Label("a"), Label("b")], [decision(attributes), decision(plain)], redact)
    assert [example.query for example in found.examples] == ["mail <mail>", "find it"]
    assert found.redacted == 1


def test_a_function_of_ones_own_can_be_named() -> None:
    assert load_redaction("builtins:str")("x") == "x"
    assert load_redaction(Settings().redaction) is redact


@pytest.mark.parametrize("name", ["nonsense", "no.such.module:f", "json:nothing", "sys:maxsize", ":", ""])
def test_a_function_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(InvalidSettings, match=r"AUTOOPT_REDACTION|takes and returns text"):
        load_redaction(name)
