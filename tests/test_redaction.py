import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.modules.redaction import load_redaction, redact
from autoopt_pipeline.modules.registry import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.settings import Settings
from tests.examples import decision


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
        "order 1234567",
        "firmware 4.2.1 at 10:30",
        "the top 100, 200 and 300",
        "reply @marta about the roof",
    ],
)
def test_dates_and_plain_numbers_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text() | st.text("a1@.+- ()/", max_size=60))
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
