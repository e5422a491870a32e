"""Whether a text quotes a query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.similarity import quotes

words = st.lists(st.sampled_from(["find", "the", "old", "Poster", "über", "42", "now"]), max_size=8)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("As in 'Where is Maria?', search.", "where is maria"),
        ("As in 'where is MARIA', search.", "Where is Maria?!"),
        ("charge DE89370400440532013000 for it", "de89 3704 0044 0532 0130 00".replace(" ", "")),
        ("例如我的体检报告在哪里的问题", "我的体检报告在哪里?"),
        ("เช่น ใบแจ้งหนี้อยู่ที่ไหน ครับ", "ใบแจ้งหนี้อยู่ที่ไหน"),
    ],
)
def test_a_query_is_found_in_a_text_whatever_the_case_punctuation_and_script(text: str, query: str) -> None:
    assert quotes(text, query)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Show videos to those who ask for them.", "show videos"),
        ("找视频的时候", "找视频"),
        ("where is the Maria", "where is Maria"),
        ("nowhere is Maria", "where is Maria"),
        ("", ""),
    ],
)
def test_short_queries_and_words_that_are_not_in_a_row_are_not_quoted(text: str, query: str) -> None:
    assert not quotes(text, query)


@given(words, words, words)
def test_a_query_of_three_different_words_is_quoted_by_whatever_contains_it(
    before: list[str], query: list[str], after: list[str]
) -> None:
    text = " ".join([*before, *query, *after])
    assert quotes(text, " ".join(query)) or len(set(query)) < 3
