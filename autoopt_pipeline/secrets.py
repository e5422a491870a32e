"""The secrets of this process, and how they are kept out of every text that leaves it.

Servers and drivers quote what they refuse: a key in a header, a password in an address. So whoever reads a secret
registers it (`protect`), and errors, log records and reports pass `scrub`.
"""

import base64
import html
import logging
import operator
import os
import re
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from typing import Any
from urllib.parse import unquote

SHOWN = "***"
"""Stands in place of a secret."""

SHORTEST = 8
"""Characters of the shortest secret. Blanking shorter texts would blank words."""

PART = 12
"""A run of so many characters of a secret is blanked too, because servers quote parts of a key.

Of a random key these are 60 bits and more, so no other text has them by chance. What may stay (up to 11 characters) is
what providers show themselves: `sk-abcd***wxyz`.
"""

_MOST = 256
_LONGEST = 16_384
"""How many secrets are kept (the one not registered for longest is forgotten), and how many characters of one."""

_DEPTH = 3
"""How often quoting is undone: JSON inside the `repr` of an error inside JSON."""

_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD)$")

_PLACEHOLDER = re.compile(
    r"(?:\W|_|(?<!\d)\d{1,4}(?!\d)|12345678?9?0?|abc|admin|any|anything|api|auth|change|default|demo|dev|dummy|empty|example"
    r"|fake|foo|bar|here|host|keys?|lm|local|me|my|needed|no|none|not|null|ollama|open|ai|password|placeholder|require[ds]?"
    r"|sample|secret|sk|some|studio|test|testing|the|thing|token|unused|used?|user|value|vllm|x|your)+",
    re.IGNORECASE,
)
"""No secret, but what a server without authentication is given: `no-key-required`, `your_api_key_here`, `sk-1234`."""

_FEWEST_CHARACTERS = 4
"""Different characters in a secret. `xxxxxxxxxxxx` and `0000-0000` are placeholders too."""

_WORDS = re.compile(r"[a-z _.-]+")
"""A part of a secret that may be a part of ordinary text, e.g. `search_agent` of `search_agent_9!`."""

_NOTATIONS = (
    r"%[0-9A-Fa-f]{2}",  # addresses
    r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U000[0-9A-Fa-f]{5}|.)",  # literals of Python and JSON
    r"&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[a-z]{2,6});",  # HTML
)
"""How one character is written where it would mean something else."""

_QUOTED = re.compile("|".join(_NOTATIONS), re.DOTALL)

_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}

_lock = threading.Lock()
_secrets: dict[str, None] = {}
_forms: Mapping[str, tuple[str, ...]] = {}
"""What is blanked, by its first `SHORTEST` characters. Replaced as a whole, so that readers need no lock."""


def protect(*secrets: str | None) -> None:
    """Register secrets. Space around one does not count. Placeholders and very short texts are left out."""
    global _forms
    new = [text for secret in secrets if secret and is_secret(text := secret.strip()[:_LONGEST])]
    if all(secret in _secrets for secret in new):
        return
    with _lock:
        for secret in new:
            _secrets.pop(secret, None)
            _secrets[secret] = None
        for oldest in list(_secrets)[:-_MOST]:
            del _secrets[oldest]
        _forms = _by_beginning(_secrets)


def protect_address(address: str | None, *, path: bool = False) -> None:
    """Register the password of an address. With `path` all that follows the host is secret too, as for a webhook.

    Takes also what is no address, because people forget to quote `/`, `#` and `@` in a password.
    """
    _, separator, rest = (address or "").strip().partition("://")
    if not separator:
        return
    login, _, after = rest.rpartition("@")
    password = login.partition(":")[2]
    protect(password, unquote(password))
    if path:
        where = after.partition("/")[2]
        protect(where, *re.split(r"[/?&=]", where))


def protect_environment(environment: Mapping[str, str]) -> None:
    """Register the values of variables that are secret by their name, and passwords in the addresses of all others."""
    protect(*(value for name, value in environment.items() if _SECRET_VARIABLE.search(name)))
    for value in environment.values():
        if "://" in value and "@" in value:
            protect_address(value)


def is_secret(text: str) -> bool:
    """Whether it is long enough, and none of the placeholders that are given where no key is needed."""
    return len(text) >= SHORTEST and len(set(text)) >= _FEWEST_CHARACTERS and _PLACEHOLDER.fullmatch(text) is None


def scrub(text: str) -> str:
    """The text with `***` for each secret, in every usual way to write it, and for long parts of one."""
    forms = _forms
    if not forms:
        return text
    places: Sequence[int] = range(len(text) + 1)
    spans: list[tuple[int, int]] = []
    read = text
    for depth in range(_DEPTH + 1):
        spans += [(places[start], places[end]) for start, end in _found(forms, read)]
        if depth == _DEPTH or not _QUOTED.search(read):
            break
        read, places = _unquoted(read, places)
    return _blanked(text, spans)


def scrub_error(error: BaseException) -> BaseException:
    """The error with no secret in it, its notes, its causes, nor what it was raised while handling.

    It is changed in place, so that it stays what it is. Where that cannot be done, another one with the same text and
    trace is returned.
    """
    return _scrubbed(error, set()) if _forms else error


@contextmanager
def scrubbing_errors() -> Generator[None, None, None]:
    """Take secrets out of what is raised here, with all that led to it, because whoever catches it may store it."""
    try:
        yield
    except BaseException as e:
        clean = scrub_error(e)
        if clean is e:
            raise
        raise clean from clean.__cause__


def scrub_record(record: logging.LogRecord) -> bool:
    """Take secrets out of a log record and its error. Always true, to be a filter of a logger."""
    if not _forms:
        return True
    try:
        said = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the message: logging says so itself
        return True
    if scrub(said) != said:
        record.msg = scrub(str(record.msg))
        if isinstance(record.args, tuple):  # formatters take single ones
            record.args = tuple(scrub(arg) if isinstance(arg, str) else arg for arg in record.args)
        if scrub(said := record.getMessage()) != said:
            record.msg, record.args = scrub(said), ()
    if record.exc_info and record.exc_info[1]:
        error = scrub_error(record.exc_info[1])
        record.exc_info = (type(error), error, record.exc_info[2])
    return True


def scrub_logs_of(*loggers: str) -> None:
    """Take secrets out of what these loggers say, as a library may do in the process of an application."""
    for name in loggers:
        logging.getLogger(name).addFilter(scrub_record)


def guard_process() -> None:
    """Take secrets out of all that this process logs, and of errors that nobody catches. For processes of our own."""
    global _guarded
    protect_environment(os.environ)
    with _lock:
        if _guarded:
            return
        _guarded = True
    make_record, unhandled, unhandled_in_thread = logging.getLogRecordFactory(), sys.excepthook, threading.excepthook

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        scrub_record(record)
        return record

    def told(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        clean = scrub_error(error)
        unhandled(type(clean), clean, trace)

    def told_in_thread(args: Any) -> None:
        error = scrub_error(args.exc_value) if args.exc_value else None
        unhandled_in_thread(
            threading.ExceptHookArgs((type(error) if error else args.exc_type, error, args.exc_traceback, args.thread))
        )

    logging.setLogRecordFactory(made)
    sys.excepthook, threading.excepthook = told, told_in_thread


_guarded = False


def _by_beginning(secrets: Mapping[str, None]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for secret in secrets:
        for form in _written(secret):
            found.setdefault(form[:SHORTEST], {})[form] = None
            for start in range(len(form) - PART + 1):
                part = form[start : start + PART]
                if not _WORDS.fullmatch(part):
                    found.setdefault(part[:SHORTEST], {})[part] = None
    # The longest first.
    return {start: tuple(sorted(forms, key=len, reverse=True)) for start, forms in found.items()}


def _written(secret: str) -> Iterator[str]:
    """The ways to write a secret that are not undone in the text that is searched."""
    spaced = {secret, secret.replace(" ", "+")}
    for form in spaced | {text.encode("utf-8", "surrogatepass").decode("latin-1") for text in spaced}:  # byte for byte
        yield form
        # What only looks quoted in it is undone with what is.
        for count in range(1, len(_NOTATIONS) + 1):
            for some in combinations(_NOTATIONS, count):
                yield re.sub("|".join(some), lambda match: _character(match[0]), form, flags=re.DOTALL)
    raw = secret.encode("utf-8", "surrogatepass")
    for before in range(3):  # at whatever place of a longer text: `user:secret`, `:secret`
        first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        encoded = base64.b64encode(bytes(before) + raw + bytes(2)).decode()[first:last]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))


def _found(forms: Mapping[str, tuple[str, ...]], text: str) -> Iterator[tuple[int, int]]:
    for start in range(len(text) - SHORTEST + 1):
        if (beginning := text[start : start + SHORTEST]) in forms:
            for form in forms[beginning]:
                if text.startswith(form, start):
                    yield start, start + len(form)
                    break


def _unquoted(text: str, places: Sequence[int]) -> tuple[str, list[int]]:
    """The text with one layer of quoting undone, and where in the original each character, and the end, was."""
    parts: list[str] = []
    where: list[int] = []
    end = 0
    for match in _QUOTED.finditer(text):
        parts += [text[end : match.start()], character := _character(match[0])]
        where += places[end : match.start()]
        where += [places[match.start()]] * len(character)
        end = match.end()
    return "".join([*parts, text[end:]]), [*where, *places[end:]]


def _character(quoted: str) -> str:
    if quoted[0] == "&":
        return html.unescape(quoted)
    if quoted[0] == "%":
        return chr(int(quoted[1:], 16))
    return chr(int(quoted[2:], 16)) if len(quoted) > 2 else _CONTROLS.get(quoted[1], quoted[1])


def _blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    parts: list[str] = []
    end = 0
    for start, stop in sorted(spans):
        if start > end or not parts:
            parts += [text[end:start], SHOWN]
        end = max(end, stop)
    return "".join([*parts, text[end:]])


def _scrubbed(error: BaseException, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    suppressed = error.__suppress_context__
    if error.__cause__:
        error.__cause__ = _scrubbed(error.__cause__, seen)
    if error.__context__:
        error.__context__ = _scrubbed(error.__context__, seen)
    error.__suppress_context__ = suppressed
    clean = error
    if isinstance(error, BaseExceptionGroup):
        members = [_scrubbed(member, seen) for member in error.exceptions]
        if scrub(error.message) != error.message or any(map(operator.is_not, members, error.exceptions)):
            clean = BaseExceptionGroup(scrub(error.message), members)
    if not _is_clean(clean):
        _scrub_fields(clean)
    if not _is_clean(clean):
        clean = RuntimeError(scrub(f"{type(error).__name__}: {error}"))
    if clean is not error:
        clean.__cause__, clean.__context__ = error.__cause__, error.__context__
        clean.__suppress_context__ = suppressed
        clean.__traceback__ = error.__traceback__
    return clean


def _is_clean(error: BaseException) -> bool:
    """Of the error itself, with its notes; what led to it has been looked at."""
    said = "".join(traceback.format_exception_only(error))
    return scrub(said) == said


def _scrub_fields(error: BaseException) -> None:
    """Most errors say what is in their arguments, and some what is in attributes. Not all can be changed."""
    with suppress(AttributeError, TypeError):
        error.args = tuple(_clean_value(value) for value in error.args)
        for name, value in getattr(error, "__dict__", {}).items():
            setattr(error, name, _clean_value(value))


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    return [_clean_value(each) for each in value] if isinstance(value, list) else value
