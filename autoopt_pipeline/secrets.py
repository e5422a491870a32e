"""Keeps the secrets of this process out of every text that leaves it.

Servers and drivers quote the key or the address that they refuse. So code that reads a secret registers it (`protect`),
and errors, log records and reports pass through `scrub`.
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

# Replaces a secret.
SHOWN = "***"

# Length of the shortest secret. Shorter texts may be ordinary words.
SHORTEST = 8

# Length of the parts of a secret that are replaced too, because servers quote parts of a key.
#
# Such a part of a random key has 60 bits or more, so no other text contains it by chance. Shorter parts (up to 11
# characters) may stay; providers show them themselves: `sk-abcd***wxyz`.
PART = 12

# Maximum number of secrets. Registering more drops those that were registered longest ago.
_MOST = 256

# Maximum length of a secret. The rest of a longer one is ignored.
_LONGEST = 16_384

# Layers of quoting that `scrub` undoes: JSON inside the `repr` of an error inside JSON.
_DEPTH = 3

_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD)$")

# Placeholders, not secrets, for servers without authentication: `no-key-required`, `your_api_key_here`, `sk-1234`.
_PLACEHOLDER = re.compile(
    r"(?:\W|_|(?<!\d)\d{1,4}(?!\d)|12345678?9?0?|abc|admin|any|anything|api|auth|change|default|demo|dev|dummy|empty|example"
    r"|fake|foo|bar|here|host|keys?|lm|local|me|my|needed|no|none|not|null|ollama|open|ai|password|placeholder|require[ds]?"
    r"|sample|secret|sk|some|studio|test|testing|the|thing|token|unused|used?|user|value|vllm|x|your)+",
    re.IGNORECASE,
)

# Different characters that a secret has at least. `xxxxxxxxxxxx` and `0000-0000` are placeholders too.
_FEWEST_CHARACTERS = 4

# Parts of a secret that ordinary text may contain, e.g. `search_agent` of `search_agent_9!`.
_WORDS = re.compile(r"[a-z _.-]+")

# Ways to quote one character.
_NOTATIONS = (
    r"%[0-9A-Fa-f]{2}",  # addresses
    r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U000[0-9A-Fa-f]{5}|.)",  # literals of Python and JSON
    r"&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[a-z]{2,6});",  # HTML
)

_QUOTED = re.compile("|".join(_NOTATIONS), re.DOTALL)

# A secret with `%0A` in it would become too short to be found if its quoting in JSON were undone together with that.
_QUOTED_IN_ONE_WAY = tuple(re.compile(notation, re.DOTALL) for notation in _NOTATIONS)

_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}

_lock = threading.Lock()
_secrets: dict[str, None] = {}

# Texts to replace, by their first `SHORTEST` characters. Writers replace the whole mapping, so readers need no lock.
_forms: Mapping[str, tuple[str, ...]] = {}


def protect(*secrets: str | None) -> None:
    """Register secrets, without surrounding space. Placeholders and very short texts are not registered."""
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
    """Register the password of an address. With `path`, the part after the host is secret too, as for a webhook.

    Accepts invalid addresses too, because people forget to quote `/`, `#` and `@` in a password.
    """
    _, separator, rest = (address or "").strip().partition("://")
    if not separator:
        return
    login, _, after = rest.rpartition("@")
    password = login.partition(":")[2]
    protect(password, unquote(password))
    if path:
        path_and_query = after.partition("/")[2]
        protect(path_and_query, *re.split(r"[/?&=]", path_and_query))


def protect_environment(environment: Mapping[str, str]) -> None:
    """Register the values of variables with a secret's name, and the passwords in all addresses."""
    protect(*(value for name, value in environment.items() if _SECRET_VARIABLE.search(name)))
    for value in environment.values():
        if "://" in value and "@" in value:
            protect_address(value)


def is_secret(text: str) -> bool:
    """Whether a text is long enough to be a secret, and not a placeholder."""
    return len(text) >= SHORTEST and len(set(text)) >= _FEWEST_CHARACTERS and _PLACEHOLDER.fullmatch(text) is None


def scrub(text: str) -> str:
    """Replace each secret with `***`, in every usual notation, and long parts of a secret too."""
    forms = _forms
    if not forms:
        return text
    spans = [*_matches(forms, text)]
    for quoted in (_QUOTED, *_QUOTED_IN_ONE_WAY):
        read, places = text, range(len(text) + 1)
        for _ in range(_DEPTH):
            if not quoted.search(read):
                break
            read, places = _unquoted(quoted, read, places)
            spans += [(places[start], places[end]) for start, end in _matches(forms, read)]
    return _replaced(text, spans)


def scrub_error(error: BaseException) -> BaseException:
    """Remove secrets from an error, its notes, its causes and its context.

    Changes the error in place, so that it keeps its type. If that is impossible, returns another error with the same
    text and traceback.
    """
    return _scrubbed(error, set()) if _forms else error


@contextmanager
def scrubbing_errors() -> Generator[None, None, None]:
    """Remove secrets from errors raised in the block and from their causes, because the caller may store them."""
    try:
        yield
    except BaseException as e:
        clean = scrub_error(e)
        if clean is e:
            raise
        raise clean from clean.__cause__


def scrub_record(record: logging.LogRecord) -> bool:
    """Remove secrets from a log record and its error. Returns True always, so it can be a logger's filter."""
    if not _forms:
        return True
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the message: logging reports that itself
        return True
    if scrub(message) != message:
        record.msg = scrub(str(record.msg))
        if isinstance(record.args, tuple):  # formatters read single arguments
            record.args = tuple(scrub(arg) if isinstance(arg, str) else arg for arg in record.args)
        if scrub(message := record.getMessage()) != message:
            record.msg, record.args = scrub(message), ()
    if record.exc_info and record.exc_info[1]:
        error = scrub_error(record.exc_info[1])
        record.exc_info = (type(error), error, record.exc_info[2])
    return True


def scrub_logs_of(*loggers: str) -> None:
    """Remove secrets from the records of these loggers. A library may do this in an application's process."""
    for name in loggers:
        logging.getLogger(name).addFilter(scrub_record)


def guard_process() -> None:
    """Remove secrets from all logs and uncaught errors of this process. Only for the pipeline's own processes."""
    global _guarded
    protect_environment(os.environ)
    with _lock:
        if _guarded:
            return
        _guarded = True
    make_record, unhandled, unhandled_in_thread = logging.getLogRecordFactory(), sys.excepthook, threading.excepthook

    def make_clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        scrub_record(record)
        return record

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        clean = scrub_error(error)
        unhandled(type(clean), clean, trace)

    def thread_excepthook(args: Any) -> None:
        error = scrub_error(args.exc_value) if args.exc_value else None
        unhandled_in_thread(
            threading.ExceptHookArgs((type(error) if error else args.exc_type, error, args.exc_traceback, args.thread))
        )

    logging.setLogRecordFactory(make_clean_record)
    sys.excepthook, threading.excepthook = excepthook, thread_excepthook


_guarded = False


def _by_beginning(secrets: Mapping[str, None]) -> dict[str, tuple[str, ...]]:
    by_beginning: dict[str, dict[str, None]] = {}
    for secret in secrets:
        for form in _notations_of(secret):
            by_beginning.setdefault(form[:SHORTEST], {})[form] = None
            for start in range(len(form) - PART + 1):
                part = form[start : start + PART]
                if not _WORDS.fullmatch(part):
                    by_beginning.setdefault(part[:SHORTEST], {})[part] = None
    # Longest first.
    return {start: tuple(sorted(forms, key=len, reverse=True)) for start, forms in by_beginning.items()}


def _notations_of(secret: str) -> Iterator[str]:
    """The notations of a secret that `scrub` does not undo in the text that it searches."""
    spaced = {secret, secret.replace(" ", "+")}
    for form in spaced | {text.encode("utf-8", "surrogatepass").decode("latin-1") for text in spaced}:  # byte for byte
        yield form
        # A part of the secret itself may resemble quoting, and is then unquoted with the text.
        for count in range(1, len(_NOTATIONS) + 1):
            for notations in combinations(_NOTATIONS, count):
                yield re.sub("|".join(notations), lambda match: _character(match[0]), form, flags=re.DOTALL)
    raw = secret.encode("utf-8", "surrogatepass")
    for before in range(3):  # at any offset in a longer text: `user:secret`, `:secret`
        first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        encoded = base64.b64encode(bytes(before) + raw + bytes(2)).decode()[first:last]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))


def _matches(forms: Mapping[str, tuple[str, ...]], text: str) -> Iterator[tuple[int, int]]:
    for start in range(len(text) - SHORTEST + 1):
        if (beginning := text[start : start + SHORTEST]) in forms:
            for form in forms[beginning]:
                if text.startswith(form, start):
                    yield start, start + len(form)
                    break


def _unquoted(quoted: re.Pattern[str], text: str, places: Sequence[int]) -> tuple[str, list[int]]:
    """Undo one layer of quoting. Returns the text, and the original position of each character and of the end."""
    pieces: list[str] = []
    positions: list[int] = []
    end = 0
    for match in quoted.finditer(text):
        pieces += [text[end : match.start()], character := _character(match[0])]
        positions += places[end : match.start()]
        positions += [places[match.start()]] * len(character)
        end = match.end()
    return "".join([*pieces, text[end:]]), [*positions, *places[end:]]


def _character(quoted: str) -> str:
    if quoted[0] == "&":
        return html.unescape(quoted)
    if quoted[0] == "%":
        return chr(int(quoted[1:], 16))
    return chr(int(quoted[2:], 16)) if len(quoted) > 2 else _CONTROLS.get(quoted[1], quoted[1])


def _replaced(text: str, spans: Sequence[tuple[int, int]]) -> str:
    pieces: list[str] = []
    end = 0
    for start, stop in sorted(spans):
        if start > end or not pieces:
            pieces += [text[end:start], SHOWN]
        end = max(end, stop)
    return "".join([*pieces, text[end:]])


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
    """Whether the error itself and its notes contain no secret."""
    text = "".join(traceback.format_exception_only(error))
    return scrub(text) == text


def _scrub_fields(error: BaseException) -> None:
    """Scrub the arguments and attributes of an error, from which errors make their text. Some errors are read-only."""
    with suppress(AttributeError, TypeError):
        error.args = tuple(_clean_value(value) for value in error.args)
        for name, value in getattr(error, "__dict__", {}).items():
            setattr(error, name, _clean_value(value))


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    return [_clean_value(entry) for entry in value] if isinstance(value, list) else value
