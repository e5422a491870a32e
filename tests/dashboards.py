"""The dashboard as a browser meets it, without the browser."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from starlette.testclient import TestClient

from autoopt_pipeline.connections import Connections
from autoopt_pipeline.dashboard.access import Access, Person, Role
from autoopt_pipeline.dashboard.app import create_app
from autoopt_pipeline.dashboard.state import open_dashboard
from autoopt_pipeline.orchestration.instance import open_instance
from autoopt_pipeline.settings import load_settings

OPERATOR = Person("marta", Role.OPERATOR)
ALONE = Access(OPERATOR, {}, {})
"""Whoever sits at the machine, as an operator of everything."""


@contextmanager
def client(home: Path, access: Access = ALONE) -> Iterator[TestClient]:
    """A dashboard on the instance of `home` and the stores that the environment names."""
    with open_instance(home) as instance:
        app = create_app(open_dashboard(Connections(load_settings()), instance, access))
        with TestClient(
            app, base_url="http://localhost:8080", follow_redirects=False, client=("127.0.0.1", 50000)
        ) as browser:
            yield browser


def csrf(page: httpx.Response) -> str:
    """The proof in a page's form that it is one of ours."""
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found, page.text
    return found[1]


def send(browser: TestClient, path: str, **fields: str) -> httpx.Response:
    """Open a page with a form and send it, filled in so."""
    return browser.post(path.partition("?")[0], data={"csrf": csrf(browser.get(path)), **fields})


def text_of(page: httpx.Response) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<(head|datalist)\b.*?</\1>", " ", page.text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())
