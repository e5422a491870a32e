"""Defines when two queries count as duplicates, and when a text quotes a query."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

# Minimum Jaccard similarity of two queries' word sets to count as one (5 of 6 words shared).
NEAR_DUPLICATE = 0.8

# A query with fewer words and fewer characters than these counts as quoted nowhere: texts contain "show videos" by
# chance. Three words in a row are seldom chance, and neither is one long word, such as the number of an account.
QUOTED_WORDS, QUOTED_CHARACTERS = 3, 20

# Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which do not put spaces between words.
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"

_SPACED = re.compile(rf"[^\s{_LETTERS}]+")
_UNSPACED = re.compile(rf"[{_LETTERS}](?: ?[{_LETTERS}])*")  # vowel signs have become spaces, not being word characters
_WORD = re.compile(rf"[{_LETTERS}]|{_SPACED.pattern}")


def normalize_query(query: str) -> str:
    """Return the query's words in lower case, without punctuation. Accents and numbers stay."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", query).casefold())) or query.strip()


def split_words(text: str) -> list[str]:
    """Split a normalized text into words; in scripts without spaces (Chinese, Japanese, Thai), into characters."""
    return _WORD.findall(text)


def word_set(text: str) -> frozenset[str]:
    """Return the parts of a normalized text to compare: words, or character pairs in scripts without spaces.

    Single characters would not distinguish texts: Thai has 44 consonants, and of random Thai sentences of 120
    characters 40 % share four fifths of theirs.
    """
    words = frozenset(_SPACED.findall(text))
    for run in _UNSPACED.findall(text):
        characters = run.replace(" ", "")
        words |= {characters[i : i + 2] for i in range(max(1, len(characters) - 1))}
    return words


def quotes(text: str, query: str) -> bool:
    """Whether a text contains all words of a query in a row, in any case and with any punctuation."""
    return _is_quotable(query) and _in_a_row(query) in _in_a_row(text)


@lru_cache(maxsize=4096)  # the same queries are looked for in many texts
def _is_quotable(query: str) -> bool:
    normalized = normalize_query(query)
    return len(word_set(normalized)) >= QUOTED_WORDS or len(normalized) >= QUOTED_CHARACTERS


@lru_cache(maxsize=4096)
def _in_a_row(text: str) -> str:
    return f" {' '.join(split_words(normalize_query(text)))} "


def group_near_duplicates(queries: Sequence[str]) -> list[tuple[str, ...]]:
    """Group similar normalized queries, transitively. Groups and members are sorted.

    Exact: two sets with a Jaccard similarity of at least t share one of their ⌊(1-t)·n⌋+1 rarest words (prefix
    filtering; Chaudhuri et al., ICDE 2006), so only pairs that share such a word are compared.
    """
    words = {query: word_set(query) for query in queries}
    frequency = Counter(word for own in words.values() for word in own)
    parent = {query: query for query in queries}

    def root(query: str) -> str:
        while parent[query] != query:
            parent[query] = parent[parent[query]]
            query = parent[query]
        return query

    seen_under: dict[str, list[str]] = defaultdict(list)
    for query in sorted(queries, key=lambda q: (len(words[q]), q)):
        own = words[query]
        rare_first = sorted(own, key=lambda word: (frequency[word], word))
        prefix = rare_first[: int((1 - NEAR_DUPLICATE) * len(own) + 1e-9) + 1]
        for other in {candidate for word in prefix for candidate in seen_under[word]}:
            theirs = words[other]
            if len(theirs) >= NEAR_DUPLICATE * len(own) and root(other) != root(query):
                shared = len(own & theirs)
                if shared >= NEAR_DUPLICATE * (len(own) + len(theirs) - shared):
                    first, second = sorted((root(query), root(other)))
                    parent[second] = first
        for word in prefix:
            seen_under[word].append(query)
    groups: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        groups[root(query)].append(query)
    return sorted(tuple(sorted(group)) for group in groups.values())
