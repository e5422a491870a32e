"""Removes personal data and secrets from text before it is learnt from, stored or shown.

To remove more, set `AUTOOPT_REDACTION` to your own function (`package.module:function`, text in, text out).
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module

from autoopt_pipeline.errors import InvalidSettings

Redact = Callable[[str], str]

# Reads each word once, whether or not an address follows. Otherwise a word of 4000 letters would take 8 million steps.
_MAIL = re.compile(r"[\w.+-]++(\xa0*@\xa0*[\w-]+(?:\.[\w-]+)+)?")
_KEY = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|xox[abp]|glpat)[-_][\w-]{8,}"  # keys of well-known services
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # signed web tokens
    r"|\b(?=\w*\d)(?=\w*[A-Za-z])\w{32,}\b"  # long words of letters and digits
)
_MIN_NUMBER_DIGITS = 9
_NUMBER = re.compile(rf"\+?\(?\d(?:[\s()/.-]*+\d){{{_MIN_NUMBER_DIGITS - 1},}}")
_DATES = tuple(order.replace(" ", between) for order in ("%Y %m %d", "%d %m %Y", "%m %d %Y") for between in "-/.")
_DATE_LENGTHS = range(len("1.1.2000"), len("2000-01-01") + 1)
_YEARS = range(1900, 2100)

# Characters of documents that keyboards lack, by their plain form; spaces become the non-breaking one.
_READ_AS = {
    "\xa0": "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
    "-": "\u058a\u05be\u1400\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d"
    "\u301c\u3030\u30a0\u30fc\ufe31\ufe32\ufe58\ufe63\uff0d\U00010d6e\U00010ead",
    ".": "\u00b7\u0387\u2022\u2024\u2027\u2219\u22c5\u2e31\u2e33\u30fb\ufe52\uff0e\uff65",
    "/": "\u2044\u2215\uff0f",
    "(": "\ufe59\uff08",
    ")": "\ufe5a\uff09",
    "+": "\ufe62\uff0b",
    "@": "\ufe6b\uff20",
}
_TYPOGRAPHIC = str.maketrans({variant: plain for plain, variants in _READ_AS.items() for variant in variants})
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls, except white space
    r"\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0001-\U000e007f"  # Unicode's format characters
    r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u20e3\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
    r"\ufffd"  # replaces what could not be stored
)
_HIDDEN = re.compile(f"[{_INVISIBLE}]+")
_NOT_PLAIN = re.compile(f"[{_INVISIBLE}{''.join(map(chr, _TYPOGRAPHIC))}]")


def redact(text: str) -> str:
    """Replace mail addresses, keys, and numbers as long as phone or card numbers by their kind.

    Matches text as a person reads it, ignoring spaces, hyphens, dots and invisible characters in between.
    """
    replace = _replace if _NOT_PLAIN.search(text) else _replace_in_plain
    text = replace(_MAIL, lambda match: "<mail>" if match[1] else match[0], text)
    text = replace(_KEY, lambda _: "<key>", text)
    return replace(_NUMBER, _number, text)


def _replace_in_plain(pattern: re.Pattern[str], by: Callable[[re.Match[str]], str], text: str) -> str:
    return pattern.sub(by, text)


def _replace(pattern: re.Pattern[str], by: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace matches in the text as a person reads it, and leave all other characters unchanged."""
    plain, places = _as_read(text)
    done, pieces = 0, []
    for match in pattern.finditer(plain):
        if (new := by(match)) != match[0]:
            pieces += text[done : places[match.start()]], new
            done = places[match.end() - 1] + 1
    return "".join([*pieces, text[done:]])


def _as_read(text: str) -> tuple[str, Sequence[int]]:
    """Return the text in plain, visible characters, with the position of each in the original."""
    places, done = list[int](), 0
    for hidden in _HIDDEN.finditer(text):
        places += range(done, hidden.start())
        done = hidden.end()
    places += range(done, len(text))
    return _HIDDEN.sub("", text).translate(_TYPOGRAPHIC), places


def _number(match: re.Match[str]) -> str:
    """Return the replacement of a long number, or the number itself if it consists of dates and few other digits."""
    words = match[0].split()
    digits = sum(character.isdigit() for word in words if not _is_date(word.strip("()/.-+")) for character in word)
    return "<number>" if digits >= _MIN_NUMBER_DIGITS else match[0]


def _is_date(word: str) -> bool:
    """Return whether a word is a date of recent centuries, or two dates with a hyphen or slash between."""
    dates = next((two for between in "-/" if len(two := word.split(between)) == 2), [word])
    return all(map(_in_calendar, dates))


def _in_calendar(word: str) -> bool:
    if len(word) not in _DATE_LENGTHS:
        return False
    for pattern in _DATES:
        try:
            return datetime.strptime(word, pattern).year in _YEARS  # noqa: DTZ007 - only the year is used
        except ValueError:
            continue
    return False


def load_redaction(import_string: str) -> Redact:
    """Return the function that an import string names. Raises `InvalidSettings` if there is none."""
    module, _, name = import_string.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise InvalidSettings(
            f"redaction {import_string!r} cannot be loaded: {e}",
            "set AUTOOPT_REDACTION to package.module:function, or unset it",
        ) from None
    if not callable(function):
        raise InvalidSettings(f"redaction {import_string!r} is no function", "name one that takes and returns text")
    return function
