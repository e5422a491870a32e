"""What is shown and asked for of addresses in which a password stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.urls import without_login, without_secrets
from tests.support.llm_server import llm_server

SECRET = "k3y-0f-n0b0dy"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://me:{SECRET}@host:6006/p", "http://host:6006/p"),
        (f"me:{SECRET}@host", "host"),
        (f"s3://bucket/x?key={SECRET}", "s3://bucket/x"),
        (f"http://me:a?{SECRET}@host", "http://..."),
        ("/data/me@home/x", "/data/me@home/x"),
        ("http://host", "http://host"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


@given(st.text() | st.text(":/@?#", max_size=5))
def test_no_text_before_the_host_is_ever_shown(text: str) -> None:
    assert SECRET not in without_secrets(f"http://{text}:{SECRET}@host/x")


def test_a_password_is_sent_as_http_wants_it_and_stands_in_no_address_that_is_asked_for() -> None:
    assert without_login("http://me:a%2Fb@host:1/p") == ("http://host:1/p", ("me", "a/b"))
    assert without_login("http://host") == ("http://host", None)
    assert without_login("http://[bad") == ("http://[bad", None)


@pytest.mark.parametrize(
    "address",
    [
        f"ftp://me:{SECRET}@127.0.0.1:1/x",
        f"http://me:{SECRET}@127.0.0.1:1/x",
        f"nonsense://me:{SECRET}@host/x",
        f"github://me:{SECRET}@org:repo/x",
    ],
)
def test_errors_of_an_artifact_root_do_not_quote_its_password(address: str) -> None:
    with pytest.raises(AutooptError) as error:
        ObjectStore(address).read("a")
    assert_unsaid(error.value)


@pytest.mark.parametrize(
    "address", [f"redis://me:{SECRET}@127.0.0.1:1/0", f"redis://me:{SECRET}@host:x/0", f"redis:me:{SECRET}@host"]
)
def test_errors_of_a_configuration_store_do_not_quote_its_password(address: str) -> None:
    with pytest.raises(AutooptError) as error:
        open_config_store(address).current()
    assert_unsaid(error.value)


@pytest.mark.parametrize(
    "address", [f"http://me:{SECRET}@127.0.0.1:1", f"http://me:/{SECRET}@host", f"me:{SECRET}@host", "http://[bad"]
)
def test_errors_of_phoenix_do_not_quote_its_password(address: str) -> None:
    with pytest.raises(AutooptError) as error:
        Phoenix(address, timeout_seconds=0.1).about()
    assert_unsaid(error.value)


def test_a_refusal_of_phoenix_and_what_caused_it_do_not_quote_its_password() -> None:
    """HTTP's own error has the address that was asked for."""
    with llm_server() as server, pytest.raises(AutooptError, match="HTTP 501") as error:  # it knows no GET
        Phoenix(server.url.replace("://", f"://me:{SECRET}@"), timeout_seconds=0.1).about()
    assert error.value.__cause__
    assert_unsaid(error.value)


def test_a_key_that_was_put_where_its_name_belongs_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOOPT_LM_API_KEY_ENV", SECRET)
    with pytest.raises(AutooptError, match="AUTOOPT_LM_API_KEY_ENV") as error:
        load_settings()
    assert_unsaid(error.value)


def assert_unsaid(error: BaseException | None) -> None:
    """Dagster stores an error with all that caused it."""
    while error:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
