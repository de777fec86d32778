"""The routes of the console, and its life: channels, the task that asks, and who is let in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from common.clock import Clock
from common.tokens import Tokens
from console import golden, trying, updating, watching
from console.access import AccessMiddleware, AccessRules
from console.live import Live
from console.page import Console, console_of, guarded, read_form, redirect, render, session_of, show_problem, text_of
from console.sessions import Sessions
from console.upstream import Upstream

_STATIC = Path(__file__).resolve().parent / "static"
_LOGIN_SECONDS = 0.5  # after a wrong token


@dataclass(frozen=True, slots=True)
class Options:
    """How the console serves."""

    rules: AccessRules
    tokens: Callable[[], Tokens] | None = None
    may_operate: bool = False


def build_app(options: Options, open_upstream: Callable[[], Upstream], clock: Clock) -> ASGIApp:
    """The console as an ASGI application.

    Args:
        options: what it may do, and for whom.
        open_upstream: opens the channels, in the event loop.
        clock: of the process.
    """
    sessions = Sessions(clock, options.tokens)

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        upstream = open_upstream()
        live = Live(upstream, clock)
        app.state.console = Console(
            upstream,
            live,
            sessions,
            clock,
            can_log_in=options.tokens is not None,
            may_operate=options.may_operate,
            base_path=options.rules.base_path,
        )
        app.state.parts = watching.RenderedParts()
        app.state.check_places = golden.CheckPlaces()
        asking = asyncio.create_task(live.run())
        try:
            yield
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            await upstream.close()

    access = Middleware(AccessMiddleware, rules=options.rules, sessions=sessions)
    return Starlette(
        routes=_list_routes(),
        middleware=[access],
        lifespan=life,
        exception_handlers={404: _show_missing, 405: _show_missing, 500: _show_crash},
    )


def _list_routes() -> list[Route | Mount]:
    def page(path: str, handler: Callable[[Request], object], *methods: str) -> Route:
        return Route(path, guarded(handler), methods=list(methods or ("GET",)))  # type: ignore[arg-type]

    return [
        page("/", watching.overview),
        page("/live", watching.live),
        page("/try/{model}", trying.show),
        page("/try/{model}", trying.ask, "POST"),
        page("/updates", updating.history),
        page("/updates/{update_id}", updating.evidence),
        page("/updates/{update_id}/kept", updating.kept_picture),
        page("/act/{command}", updating.confirm),
        page("/act/{command}", updating.act, "POST"),
        page("/golden/{model}", golden.browse),
        page("/golden/{model}/picture", golden.picture),
        page("/golden/{model}/add", golden.add, "POST"),
        page("/golden/{model}/check", golden.check),
        page("/golden/{model}/check/run", golden.run_check),
        page("/golden/{model}/export", golden.export),
        page("/golden/{model}/import", golden.import_items, "POST"),
        page("/login", show_login),
        page("/login", log_in, "POST"),
        page("/logout", log_out, "POST"),
        Route("/healthz", _health),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]


async def show_login(request: Request) -> Response:
    """The form for a token."""
    return render(request, "login.html", problem="")


async def log_in(request: Request) -> Response:
    """Begin a session of a token's owner."""
    console = console_of(request)
    form = await read_form(request)
    owner = console.sessions.find_owner(text_of(form, "token").strip())
    if owner is None:
        await asyncio.sleep(_LOGIN_SECONDS)
        return render(request, "login.html", status=401, problem="This token is not known here.")
    console.sessions.end(session_of(request))
    request.scope["state"]["new_session"] = console.sessions.begin(owner)
    return redirect(request, "/")


async def log_out(request: Request) -> Response:
    """End a session, also for those who have its cookie."""
    await read_form(request)
    sessions = console_of(request).sessions
    sessions.end(session_of(request))
    request.scope["state"]["new_session"] = sessions.begin()
    return redirect(request, "/")


async def _health(_request: Request) -> Response:
    """Whether the console runs; says nothing about the server."""
    return PlainTextResponse("ok\n")


async def _show_missing(request: Request, _error: Exception) -> Response:
    return show_problem(request, "there is no such page", 404)


async def _show_crash(request: Request, _error: Exception) -> Response:
    return show_problem(request, "internal error; see the log of the console", 500)
