"""Defines when two queries count as duplicates."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

NEAR_DUPLICATE = 0.8
"""Minimum Jaccard similarity of two queries' word sets to count as one (5 of 6 words shared)."""

_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which do not put spaces between words."""

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
