"""Pages from templates. All values are escaped, so that text from a tenant is never markup."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from autoopt_pipeline.dashboard.flash import take
from autoopt_pipeline.durations import as_duration
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.registry.records import VERSION_IN_TEXT
from autoopt_pipeline.reviews.queue import time_for
from autoopt_pipeline.text import ago, amount, duration, one_line, percent, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_HERE = Path(__file__).parent
STATIC = _HERE / "static"

# The reports that runs leave are Markdown with everything of a tenant's escaped; HTML in it stays text all the same,
# and nothing is fetched.
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def _markdown_filter(text: str) -> Markup:
    return Markup(_markdown.render(text))  # noqa: S704 - made of escaped text


def _utc(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""


def _span(seconds: float | None) -> str:
    return "not known" if seconds is None else duration(timedelta(seconds=seconds))


def _part(text: str) -> str:
    """Quote a text as one segment of a URL path."""
    return quote(str(text), safe=":")


_RUN_IN_TEXT = re.compile(r"(?<=\brun )([0-9a-f]{8})[0-9a-f-]{28}\b")


def _with_short_names(text: str) -> Markup:
    """Escape a sentence, and show versions and runs in it by their short names, with the full ones on hover."""
    plain = str(escape(text))
    for pattern in (VERSION_IN_TEXT, _RUN_IN_TEXT):
        plain = pattern.sub(_short_name, plain)
    return Markup(plain)  # noqa: S704 - escaped before


def _short_name(found: re.Match[str]) -> str:
    # Names of versions and runs consist of letters, digits and hyphens only.
    return f'<span class="version" title="{found[0]}">{found[1]}</span>'


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": ago,
        "amount": amount,
        "arrows": lambda text: str(text).replace(" -> ", " → "),
        "dollars": dollars_text,
        "utc": _utc,
        "percent": percent,
        "one_line": one_line,
        "part": _part,
        "markdown": _markdown_filter,
        "static": _static,
        "span": _span,
        "printable": printable,
        "review_time": lambda reviews: duration(time_for(reviews)),
        "timespan": duration,
        "duration": as_duration,
        "with_short_names": _with_short_names,
        "words": lambda text: str(text).replace("_", " "),
    }
    return environment


def _static(name: str) -> str:
    """The URL of a static file. It changes with the file, so that no browser uses the one of an earlier release."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


_templates = _environment()


def render(request: Request, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> Response:
    """Render a page, or a part of one."""
    user = request.scope.get("user")
    context: Mapping[str, Any] = {
        "now": datetime.now(UTC),
        "user": user if user and user.is_authenticated else None,
        "csrf": request.scope.get("csrf", ""),
        "path": request.url.path,
        "notice": take(request),
        "everybody": request.app.state.dashboard.access.everybody,
        "dagster_ui": request.app.state.dashboard.parts.settings.resolved_dagster_ui_url,
        **values,
    }
    return HTMLResponse(_templates.get_template(template).render(context), status_code=status)
