"""A secret is found in whatever way it is written, and nothing else is blanked."""

import base64
import html
import json
import logging
import pickle
import string
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from autoopt_pipeline import secrets
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.secrets import (
    PART,
    SHORTEST,
    SHOWN,
    is_secret,
    protect,
    protect_address,
    protect_environment,
    scrub,
    scrub_error,
    scrub_record,
)

KEY = "sk-proj-abcdEFGH1234ijklMNOP5678"

TOKEN = string.ascii_letters + string.digits + "-_"
"""Characters of most keys; passwords have any."""


@contextmanager
def knowing(*known: str) -> Generator[None]:
    """Only these secrets are registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_secrets", {})
        patch.setattr(secrets, "_forms", {})
        protect(*known)
        yield


@pytest.fixture
def nothing_known() -> Iterator[None]:
    with knowing():
        yield


def some_secrets() -> st.SearchStrategy[str]:
    """Passwords and keys that are secret. Space around a secret does not count, so there is none."""
    characters = st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF)
    texts = st.text(characters, min_size=SHORTEST, max_size=80).map(str.strip)
    # Of a backslash at the end nobody can tell whether it belongs to what follows.
    return texts.filter(lambda text: is_secret(text) and not text.endswith("\\"))


Way = Callable[[str], tuple[str, str, str]]
"""What is before a secret in some notation, how the secret itself is written, and what is after it."""


def as_it_is(write: Callable[[str], str]) -> Way:
    return lambda secret: ("", write(secret), "")


def in_quotes(write: Callable[[str], str], opening: str = '"', closing: str = '"') -> Way:
    def written(secret: str) -> tuple[str, str, str]:
        text = write(secret)
        assert text.startswith(opening)
        assert text.endswith(closing)
        return opening, text[len(opening) : -len(closing)], closing

    return written


def in_pythons_quotes(write: Callable[[str], str]) -> Way:
    """Python chooses the quotes by what stands between them."""

    def written(secret: str) -> tuple[str, str, str]:
        text = write(secret)
        opening = text[: text.index(text[-1]) + 1]
        return in_quotes(write, opening, text[-1])(secret)

    return written


WAYS: dict[str, Way] = {
    "as it is": as_it_is(str),
    "repr": in_pythons_quotes(repr),
    "repr of bytes": in_pythons_quotes(lambda secret: repr(secret.encode())),
    "json": in_quotes(json.dumps),
    "json that is not ascii": in_quotes(lambda secret: json.dumps(secret, ensure_ascii=False)),
    "json with slashes as PHP writes them": in_quotes(lambda secret: json.dumps(secret).replace("/", "\\/")),
    "percent": as_it_is(lambda secret: quote(secret, safe="")),
    "percent in a path": as_it_is(quote),
    "percent in lower case": as_it_is(lambda secret: "".join(f"%{byte:02x}" for byte in secret.encode())),
    "percent in a query": as_it_is(quote_plus),
    "html": as_it_is(html.escape),
    "html by number": as_it_is(lambda secret: "".join(f"&#{ord(c)};" if c in "<>&'*_`" else c for c in secret)),
    "repr of json": in_quotes(lambda secret: repr(json.dumps(secret)), "'\"", "\"'"),
    "json of an error with json": in_quotes(lambda secret: json.dumps(repr(json.dumps(secret))), '"\'\\"', '\\"\'"'),
}

IN_BASE64: dict[str, Callable[[str], str]] = {
    "alone": lambda secret: base64.b64encode(secret.encode()).decode(),
    "for addresses": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "login without a user": lambda secret: base64.b64encode(f":{secret}".encode()).decode(),
    "login": lambda secret: base64.b64encode(f"me:{secret}".encode()).decode(),
    "login for addresses": lambda secret: base64.urlsafe_b64encode(f"user:{secret}".encode()).decode(),
    "login in an address": lambda secret: quote(base64.b64encode(f"me:{secret}".encode()), safe=""),
}


@pytest.mark.parametrize("way", WAYS)
@given(secret=some_secrets(), before=st.text(TOKEN + " '=", max_size=5))
@example(secret=KEY, before="Bearer ")
@example(secret="p@ss/w#rd!", before=":")
@example(secret="pa\\nss%41b&amp;", before="")
@example(secret="schlüssel-ключ-鍵", before="")
@example(secret="0000\x1f%0A", before="")
def test_a_secret_is_blanked_in_every_usual_way_to_write_it(way: str, secret: str, before: str) -> None:
    opening, written, closing = WAYS[way](secret)
    with knowing(secret):
        clean = scrub(f"{before}{opening}{written}{closing}.")
    assert clean.endswith(f"{SHOWN}{closing}.")
    assert f"{before}{opening}".startswith(clean[: clean.index(SHOWN)])


@pytest.mark.parametrize("way", IN_BASE64)
@given(secret=some_secrets())
@example(secret=KEY)
@example(secret="p@ss/w#rd!")
def test_a_secret_is_blanked_where_it_is_part_of_something_in_base64(way: str, secret: str) -> None:
    with knowing(secret):
        before, _, after = scrub(f"Basic {IN_BASE64[way](secret)}.").partition(SHOWN)
    # The user's name, and at the seams fewer bits than a character of the secret has.
    assert len(before.removeprefix("Basic ")) <= len("user:") * 8 // 6 + 1
    assert after.removesuffix(".").rstrip("=%3D")[1:] == ""


@given(st.data(), st.text(max_size=20), st.text(max_size=20))
def test_a_long_part_of_a_secret_is_blanked(data: st.DataObject, before: str, after: str) -> None:
    secret = data.draw(st.text(TOKEN, min_size=2 * PART, max_size=80).filter(is_secret))
    start = data.draw(st.integers(0, len(secret) - PART))
    part = secret[start : data.draw(st.integers(start + PART, len(secret)))]
    assume(any(c.isupper() or c.isdigit() for c in part[:PART]))  # others may be words, see below
    with knowing(secret):
        clean = scrub(f"{before}{part}{after}")
    assert SHOWN in clean
    assert part[:PART] not in clean


def test_what_servers_show_of_a_key_themselves_stays_and_halves_go() -> None:
    with knowing(KEY):
        assert scrub(f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}.") == (
            f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}."
        )
        assert scrub(f"key {KEY[:16]}...{KEY[-14:]} is wrong") == "key s***...*** is wrong"
        assert scrub(f"{KEY}{KEY}") == SHOWN


@given(st.text())
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assume(KEY[:SHORTEST] not in text)
    with knowing(KEY, "p@ss/w#rd!"):
        assert scrub(text) == text


@pytest.mark.parametrize(
    "placeholder",
    [
        *("", "x", "none", "None", "test", "EMPTY", "null", "dummy", "changeme", "password", "secret", "123456789"),
        *("not-needed", "no-key-required", "sk-no-key-required", "sk-1234", "lm-studio", "ollama", "placeholder"),
        *("your_api_key_here", "<your-api-key>", "YOUR-API-KEY", "test-key-1", "xxxxxxxxxxxxxxxx", "0000-0000-0000"),
        *("sk-xxxxxxxxxxxxxxxxxxxx", "anything", "my-secret-token", "short7!"),
    ],
)
def test_a_placeholder_blanks_nothing(placeholder: str) -> None:
    told = f"lm ollama/x: {placeholder} is no key; none of the tests needs a password or secret"
    with knowing(placeholder):
        assert scrub(told) == told


@pytest.mark.parametrize("secret", ["hunter2-hunter3", "Tr0ub4dor&3", "correct horse battery staple", "qzvkxwpm"])
def test_a_password_is_no_placeholder(secret: str) -> None:
    with knowing(secret):
        assert scrub(f"redis://:{secret}@host") == "redis://:***@host"


def test_words_that_a_password_shares_with_other_texts_stay_readable() -> None:
    with knowing("search_agent-routing-9!"):
        told = "acme/routing: search_agent answers"
        assert scrub(told) == told
        assert scrub("search_agent-routing-9!") == SHOWN


@pytest.mark.parametrize(
    "address",
    [
        "redis://:p#ss/w@rd?x@host:6379/0",
        "rediss://user:p#ss/w@rd?x@host:6379/0?ssl_ca_certs=/ca.pem",
        "http://me:p%23ss%2Fw%40rd%3Fx@host",
    ],
)
@pytest.mark.usefixtures("nothing_known")
def test_the_password_of_an_address_is_a_secret_also_where_it_is_not_quoted(address: str) -> None:
    protect_address(address)
    assert scrub("invalid password p#ss/w@rd?x at host") == "invalid password *** at host"
    assert scrub(address) in {address.replace(p, SHOWN) for p in ("p#ss/w@rd?x", "p%23ss%2Fw%40rd%3Fx")}


@pytest.mark.usefixtures("nothing_known")
def test_of_a_webhooks_address_the_host_can_be_told_and_the_rest_cannot() -> None:
    protect_address("https://hooks.example.com/services/T0AB12CD/B0EF34GH/abcdefGHIJKL123456", path=True)
    assert scrub("POST https://hooks.example.com/services/T0AB12CD/B0EF34GH/abcdefGHIJKL123456 404") == (
        "POST https://hooks.example.com/*** 404"
    )
    assert scrub("no such token: abcdefGHIJKL123456") == "no such token: ***"


@pytest.mark.usefixtures("nothing_known")
def test_variables_are_secret_by_their_names_or_by_a_password_in_them() -> None:
    protect_environment(
        {
            "SHOP_API_KEY": " sk-shop-12345678 \n",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "HTTPS_PROXY": "http://me:pr0xy-passw0rd@proxy:3128",
            "KEYBOARD": "de-nodeadkeys",
            "OLLAMA_API_KEY": "ollama",
        }
    )
    told = "sk-shop-12345678 wJalrXUtnFEMIK7MDENG AKIAIOSFODNN7EXAMPLE pr0xy-passw0rd de-nodeadkeys ollama"
    assert scrub(told) == "*** *** AKIAIOSFODNN7EXAMPLE *** de-nodeadkeys ollama"


@pytest.mark.usefixtures("nothing_known")
def test_as_many_secrets_as_a_deployment_has_are_known_and_no_more_than_a_bound() -> None:
    keys = [f"sk-{number:04}-of-the-tenant" for number in range(secrets._MOST + 5)]
    for key in keys:
        protect(key)
    assert len(secrets._secrets) == secrets._MOST
    assert scrub(keys[-1]) == SHOWN
    began = time.process_time()
    scrub("an ordinary line of a log, of which there are many. " * 200)
    assert time.process_time() - began < 0.1  # 1 ms of 10,000 characters


class WithItsOwnText(Exception):
    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__("args say nothing")

    def __str__(self) -> str:
        return f"it says {self.message}"


class ThatCannotBeChanged(Exception):
    def __str__(self) -> str:
        return f"always {KEY}"


def all_of(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def test_an_error_loses_the_secret_with_all_that_led_to_it_and_stays_what_it_is() -> None:
    def fail() -> None:
        try:
            try:
                raise ThatCannotBeChanged
            except ThatCannotBeChanged:
                raise WithItsOwnText(KEY) from ValueError(f"b'Bearer {KEY}\\n'")
        except WithItsOwnText as e:
            e.add_note(f"asked with {KEY}")
            raise ExceptionGroup(f"of {KEY}", [KeyError(KEY), ThatCannotBeChanged()]) from e

    with knowing(KEY):
        with pytest.raises(ExceptionGroup) as caught:
            fail()
        assert KEY in all_of(caught.value)
        clean = scrub_error(caught.value)
        assert isinstance(clean, ExceptionGroup)
        assert KEY not in all_of(clean)
        assert [type(each) for each in clean.exceptions] == [KeyError, RuntimeError]
        assert "always ***" in all_of(clean)
        assert isinstance(clean.__cause__, WithItsOwnText)
        assert str(clean.__cause__) == "it says ***"
        assert clean.__cause__.__suppress_context__
        assert "in fail" in all_of(clean)


def test_errors_that_lead_to_each_other_come_to_an_end() -> None:
    with knowing(KEY):
        first, second = ValueError(KEY), ValueError(KEY)
        first.__context__, second.__context__ = second, first
        assert KEY not in all_of(scrub_error(first))


def test_an_error_for_a_person_is_clean_however_it_was_built() -> None:
    with knowing(KEY):
        error = AutooptError(f"the model said {KEY!r}", f"see {quote(KEY)}")
        assert str(error) == "the model said '***' -> see ***"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    trouble = (type(error), error, None) if error else None
    return logging.LogRecord("x", logging.WARNING, __file__, 1, message, args, trouble)


def test_a_log_record_is_clean_and_keeps_arguments_that_formatters_take_apart() -> None:
    with knowing(KEY):
        said = record("%s asked for %s: %d", "me", f"/x?key={KEY}", 200)
        assert scrub_record(said)
        assert said.args == ("me", "/x?key=***", 200)
        said = record("%s", ValueError(KEY), error=WithItsOwnText(KEY))
        assert scrub_record(said)
        assert KEY not in logging.Formatter().format(said)
        assert scrub_record(record("%d", KEY))  # does not fit, which logging tells itself


def test_what_a_guarded_process_logs_or_dies_of_is_clean() -> None:
    code = f"""
import logging, threading
from autoopt_pipeline.secrets import guard_process, protect
protect({KEY!r})
guard_process()
guard_process()
key = "sk-proj-" + "abcdEFGH1234" + "ijklMNOP5678"
logging.getLogger("some.library").error("refused %r", {{"key": key}})
try:
    raise ValueError(key)
except ValueError:
    logging.getLogger("another").exception("it failed")
def fail():
    raise OSError(1, key)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise LookupError(key) from ValueError(key)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert KEY not in done.stderr
    for words in ("refused", "ValueError: ***", "Exception in thread", "LookupError: ***", "it failed"):
        assert words in done.stderr
