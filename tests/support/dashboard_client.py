"""The dashboard as a browser meets it: a client for its pages, and their forms, filled in and sent."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import dagster as dg
import httpx
from starlette.testclient import TestClient

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.app import create_app
from autoopt_pipeline.dashboard.auth import Access, Role, User
from autoopt_pipeline.dashboard.context import open_dashboard
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.settings import load_settings

Fields = dict[str, list[str]]


def everybody(role: Role = Role.OPERATOR, tenants: Sequence[str] = ("*",)) -> Access:
    """Nobody has to sign in, and whoever asks may do this."""
    return Access(User("tester", role, tuple(tenants)), {}, {})


def client(instance: dg.DagsterInstance, access: Access | None = None) -> TestClient:
    """A browser at the dashboard of the stores that the settings name. It follows redirections."""
    dashboard = open_dashboard(Connections(load_settings()), instance, access or everybody())
    return TestClient(create_app(dashboard), base_url="http://localhost")


@contextmanager
def visiting(home: Path, access: Access | None = None) -> Generator[TestClient]:
    """A browser at a dashboard that looks at all tenants, on the instance of `home`. It follows no redirections."""
    with open_instance(home) as instance:
        app = create_app(open_dashboard(Connections(load_settings()), instance, access or everybody()))
        origin = ("127.0.0.1", 50000)
        with TestClient(app, base_url="http://localhost:8080", follow_redirects=False, client=origin) as browser:
            yield browser


class _Forms(HTMLParser):
    """The forms of a page as a browser would send them untouched, by their action."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, Fields] = {}
        self._fields: Fields = {}
        self._textarea = self._select = ""
        self._options: list[tuple[str | None, bool]] = []
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name, kind = given.get("name", ""), given.get("type", "text")
        if tag == "form":
            self._fields = self.forms.setdefault(given.get("action", ""), {})
        elif tag == "input" and name and (kind not in ("checkbox", "radio") or "checked" in given):
            self._fields.setdefault(name, []).append(given.get("value", "on" if kind == "checkbox" else ""))
        elif tag == "textarea":
            self._textarea, self._text = name, []
        elif tag == "select":
            self._select, self._options = name, []
        elif tag == "option" and self._select:
            self._options.append((given.get("value"), "selected" in given))
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)
            if self._select and self._options and self._options[-1][0] is None:
                self._options[-1] = (data.strip(), self._options[-1][1])

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            # The line end after the tag is not part of the text; the others are sent as CRLF, whatever they were.
            text = "".join(self._text or ()).replace("\r\n", "\n").removeprefix("\n").replace("\n", "\r\n")
            self._fields.setdefault(self._textarea, []).append(text)
            self._text = None
        elif tag == "select":
            values = [value or "" for value, _ in self._options]
            chosen = [value or "" for value, selected in self._options if selected] or values[:1]
            self._fields.setdefault(self._select, []).extend(chosen[-1:])
            self._select, self._text = "", None


def forms(html: str) -> Mapping[str, Fields]:
    """What a browser would send of each form of a page that nobody touched, by the form's action."""
    parser = _Forms()
    parser.feed(html)
    return parser.forms


def form(html: str, action: str, **changes: str | Sequence[str] | None) -> Fields:
    """A form, filled in. Names with dots can be given as `**{"a.b": "c"}`; None takes a field away."""
    fields = dict(forms(html)[action])
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = [value] if isinstance(value, str) else list(value)
    return fields


def send(browser: TestClient, path: str, **changes: str) -> httpx.Response:
    """Open a page with a form, fill it in, and send it."""
    action = path.partition("?")[0]
    return browser.post(action, data=form(browser.get(path).text, action, **changes))


def csrf(page: httpx.Response) -> str:
    """The proof in a page's forms that they are ours."""
    return next(fields["csrf"][0] for fields in forms(page.text).values() if "csrf" in fields)


def text_of(page: httpx.Response) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<(head|datalist)\b.*?</\1>", " ", page.text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())
