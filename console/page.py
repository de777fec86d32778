"""What every page shares: templates, languages, forms that are read in memory, and errors."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from common.clock import Clock
from console import charts, views, words
from console.access import CSRF_FIELD
from console.live import Live
from console.reasons import Explainer
from console.sessions import Session, Sessions
from console.upstream import CallFailed, Upstream

LANGUAGE_COOKIE = "hotslot_lang"
MAX_FORM_BYTES = 256 << 10  # beside the picture
MAX_FIELDS = 60
MAX_HELD_BYTES = 256 << 20  # of all forms with pictures that are being read or answered
FORM_SECONDS = 300.0  # for a form to arrive
_HERE = Path(__file__).resolve().parent


class FormRefused(Exception):
    """A form cannot be used; the message is for its sender.

    Attributes:
        status: of HTTP.
        detail: numbers, or what a parser says; the sentence itself is a key of `console.words`.
    """

    def __init__(self, sentence: str, status: int = 400, detail: str = "") -> None:
        super().__init__(sentence)
        self.status, self.detail = status, detail


class FormMemory:
    """Counts the bytes of all forms that may have a picture.

    They are kept in memory, and whoever may try a model may send large ones. Other forms are small, and not counted.
    """

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self._left = limit

    def take(self, count: int) -> None:
        """Count bytes that have arrived.

        Raises:
            FormRefused: there are too many.
        """
        if count > self._left:
            raise FormRefused("too many forms arrive now: send it again in a minute", 503)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Count bytes that are needed no more."""
        self._left += count


class _InMemoryParser(MultiPartParser):
    """Pictures stay in memory: nothing that is tried is written to a disk."""

    spool_max_size = 1 << 30


def make_environment() -> jinja2.Environment:
    """The templates, with the filters of `views`; every value is escaped."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    found = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for shown in (
        views.short,
        views.seconds,
        views.size,
        views.moment,
        views.percent,
        views.mark_code,
        views.stage_name,
        views.outcome_name,
        views.role_name,
        views.state_name,
        views.level_name,
    ):
        found.filters[shown.__name__] = shown
    found.globals["draw_rates"], found.globals["draw_latencies"] = charts.draw_rates, charts.draw_latencies
    return found


@dataclass(frozen=True, slots=True)
class Console:
    """The parts of the console that pages use."""

    upstream: Upstream
    live: Live
    sessions: Sessions
    clock: Clock
    can_log_in: bool = False
    may_operate: bool = False
    base_path: str = ""
    form_memory: FormMemory = field(default_factory=FormMemory)
    environment: jinja2.Environment = field(default_factory=make_environment)

    def can_act(self, session: Session) -> bool:
        """Whether a session may change anything now."""
        return self.may_operate and bool(session.operator) and self.sessions.is_valid(session)


def console_of(request: Request) -> Console:
    """The console that serves a request."""
    found: Console = request.app.state.console
    return found


def session_of(request: Request) -> Session:
    """The session of a request, as it was when the request began."""
    found: Session = request.scope["state"]["session"]
    return found


def language_of(request: Request) -> str:
    """The language of a page."""
    asked = request.query_params.get("lang", "")
    return words.choose_language(
        asked, request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", "")
    )


def context_of(request: Request) -> dict[str, Any]:
    """The values that every template gets."""
    console, language, session = console_of(request), language_of(request), session_of(request)
    return {
        "_": words.translator(language),
        "explain": Explainer(language),
        "language": language,
        "base": console.base_path,
        "path": request.scope["path"],
        "language_link": _keep_query(request),
        "session": session,
        "csrf": request.scope["state"]["csrf"],
        "can_log_in": console.can_log_in,
        "can_act": console.can_act(session),
        "may_operate": console.may_operate,
        "now": console.clock.now(),
    }


def _keep_query(request: Request) -> str:
    """The beginning of a link to this page in another language: its query without the language."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "lang"]
    return f"?{urlencode(kept)}&" if kept else "?"


def render_part(request: Request, template: str, **values: object) -> str:
    """A part of a page."""
    return console_of(request).environment.get_template(template).render(context_of(request) | values)


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:  # noqa: ANN401  of a template
    """A page; remembers the language that was clicked."""
    response = HTMLResponse(render_part(request, template, **values), status)
    asked = request.query_params.get("lang", "")
    if asked in words.LANGUAGES:
        path = f"{console_of(request).base_path}/"
        response.set_cookie(LANGUAGE_COOKIE, asked, max_age=31536000, path=path, httponly=True, samesite="strict")
    return response


def redirect(request: Request, path: str) -> Response:
    """Go on to another page, by GET."""
    return RedirectResponse(console_of(request).base_path + path, 303)


def is_partial(request: Request) -> bool:
    """Whether htmx asks for a part of a page."""
    return request.headers.get("hx-request", "") == "true"


async def read_form(request: Request, max_picture_bytes: int = 0) -> FormData:
    """Read a form whole, with at most one picture.

    Raises:
        FormRefused: it is too large, malformed, or was not sent from one of our pages.
    """
    most = MAX_FORM_BYTES + max_picture_bytes
    try:
        declared = int(request.headers.get("content-length", "0"))
    except ValueError:
        raise FormRefused("the form has no length") from None
    if declared > most:
        raise FormRefused("the form is too large", 413, f"{declared} > {most} bytes")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A form without a picture is small, and that of a login or a rollback must not be refused for others' pictures.
    stream = _bounded(request, most, counts=max_picture_bytes > 0)
    try:
        async with asyncio.timeout(FORM_SECONDS):
            form = await _parse(request, kind, stream)
    except TimeoutError:
        raise FormRefused("the form did not arrive in time", 408) from None
    except MultiPartException as error:
        raise FormRefused("the form is malformed", 400, error.message[:200]) from error
    request.scope["state"]["form"] = form
    check_csrf(request, text_of(form, CSRF_FIELD))
    return form


async def _parse(request: Request, kind: str, stream: AsyncGenerator[bytes, None]) -> FormData:
    if kind == "multipart/form-data":
        parser = _InMemoryParser(
            request.headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FORM_BYTES
        )
        return await parser.parse()
    if kind == "application/x-www-form-urlencoded":
        return await FormParser(request.headers, stream).parse()
    raise FormRefused("the form is neither multipart/form-data nor application/x-www-form-urlencoded", 415)


def check_csrf(request: Request, token: str) -> None:
    """Refuse a request that no page of the browser's own session began.

    Raises:
        FormRefused: the token is another one.
    """
    if token != request.scope["state"]["csrf"]:
        raise FormRefused("the page is of another session: load it again, and send the form again", 403)


async def _bounded(request: Request, most: int, *, counts: bool) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > most:
            raise FormRefused("the form is too large", 413, f"> {most} bytes")
        if counts:
            hold_memory(request, len(part))
        yield part


def hold_memory(request: Request, count: int) -> None:
    """Count bytes of the memory of all forms until the request is answered.

    Raises:
        FormRefused: there are too many.
    """
    console_of(request).form_memory.take(count)
    state = request.scope["state"]
    state["form_bytes"] = state.get("form_bytes", 0) + count


def text_of(form: FormData, name: str) -> str:
    """A field of a form; empty if it is missing or a file."""
    value = form.get(name)
    return value if isinstance(value, str) else ""


async def picture_of(form: FormData, name: str = "picture") -> bytes:
    """The bytes of a chosen picture; empty if none was."""
    value = form.get(name)
    return await value.read() if isinstance(value, UploadFile) else b""


Handler = Callable[[Request], Awaitable[Response]]


def guarded(handler: Handler) -> Handler:
    """A handler whose failures are shown as a page, or as a part if htmx asks."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except CallFailed as error:
            status = 503 if error.is_away else 404 if error.reason.endswith("_UNKNOWN") else 400
            return show_problem(request, str(error), status, reason=error.reason)
        except FormRefused as error:
            return show_problem(request, str(error), error.status, detail=error.detail)
        finally:
            console_of(request).form_memory.give_back(request.scope["state"].pop("form_bytes", 0))
            form = request.scope["state"].pop("form", None)
            if form is not None:
                await form.close()  # gives the picture's memory back

    return handle


def show_problem(request: Request, sentence: str, status: int, *, reason: str = "", detail: str = "") -> Response:
    """An error in the API's own words, and in the language of the page."""
    template = "_problem.html" if is_partial(request) else "problem.html"
    # htmx shows only the bodies of good responses; the sentence says what is wrong.
    code = 200 if is_partial(request) else status
    return render(request, template, status=code, sentence=sentence, reason=reason, detail=detail)
