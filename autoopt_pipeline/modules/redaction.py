"""Taking personal data and secrets out of what is learnt, before anything is stored or shown.

A deployment that needs more names a function of its own in `AUTOOPT_REDACTION` (`package.module:function`,
text in, text out).
"""

import re
from collections.abc import Callable
from importlib import import_module

from autoopt_pipeline.errors import InvalidSettings

Redact = Callable[[str], str]

# Each word is looked at once, whether an address follows or not: one of 4000 letters would else take 8 million steps.
_MAIL = re.compile(r"[\w.+-]++(@[\w-]+(?:\.[\w-]+)+)?")
_KEY = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|xox[abp]|glpat)[-_][\w-]{8,}"  # keys of well-known services
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # signed web tokens
    r"|\b(?=\w*\d)(?=\w*[A-Za-z])\w{32,}\b"  # long words of letters and digits
)
_PHONE = re.compile(r"(?<![\w.])\+?\(?\d[\d ()/.-]{7,}\d(?!\w)")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")
_MIN_PHONE_DIGITS = 9


def redact(text: str) -> str:
    """Replace mail addresses, keys, and numbers of the length of phone or card numbers by what they are."""
    text = _MAIL.sub(lambda found: "<mail>" if found[1] else found[0], text)
    text = _KEY.sub("<key>", text)
    return _PHONE.sub(_phone, text)


def _phone(match: re.Match[str]) -> str:
    found = match.group()
    without_dates = _DATE.sub("", found)
    digits = sum(character.isdigit() for character in without_dates)
    return "<number>" if digits >= _MIN_PHONE_DIGITS else found


def load_redaction(import_string: str) -> Redact:
    """The function that an import string names. Raises `InvalidSettings` when there is none."""
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
