"""The page that watches: slots, updates under way, traffic and health, refreshed by server-sent events."""

import hashlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from console.live import Snapshot
from console.page import console_of, language_of, render, render_part, session_of
from console.views import list_models

_KEPT = 8  # rendered parts: languages × readers and operators


class RenderedParts:
    """The parts of one snapshot as HTML, rendered once for all who see the same."""

    def __init__(self) -> None:
        self._number = -1
        self._rows: dict[tuple[str, bool], dict[str, str]] = {}

    def find(self, request: Request, snapshot: Snapshot) -> dict[str, str]:
        """Event name → HTML."""
        if snapshot.number != self._number:
            self._number, self._rows = snapshot.number, {}
        console = console_of(request)
        key = (language_of(request), console.can_act(session_of(request)))
        if key not in self._rows and len(self._rows) < _KEPT:
            self._rows[key] = _render_parts(request, snapshot)
        return self._rows[key] if key in self._rows else _render_parts(request, snapshot)


def _render_parts(request: Request, snapshot: Snapshot) -> dict[str, str]:
    """Event name → HTML; the models as a whole first, for pages that show others."""
    views = list_models(snapshot, console_of(request).live.histories)
    parts = {
        "models": render_part(request, "_models.html", snapshot=snapshot, views=views),
        "health": render_part(request, "_health.html", snapshot=snapshot),
    }
    for view in views:
        parts[f"model-{view.number}"] = render_part(request, "_model.html", view=view)
    return parts


async def overview(request: Request) -> Response:
    """The page itself; complete without JavaScript."""
    console = console_of(request)
    snapshot = await console.live.current()
    views = list_models(snapshot, console.live.histories)
    return render(request, "watch.html", snapshot=snapshot, views=views, shown=_digest_names(snapshot))


async def live(request: Request) -> Response:
    """The same parts as server-sent events, whenever they change, as long as the session lasts."""
    console = console_of(request)
    if console.live.is_full:
        return PlainTextResponse("too many pages watch; this one is refreshed by hand\n", 503)
    parts: RenderedParts = request.app.state.parts

    async def events() -> AsyncIterator[str]:
        sent: dict[str, str] = {}
        shown = request.query_params.get("shown", "")
        yield "retry: 2000\n\n"
        async for snapshot in console.live.watch():
            if not console.sessions.is_valid(session_of(request)):
                return  # the browser connects again, with what rights it has then
            if snapshot.at is None:
                continue
            for name, html in parts.find(request, snapshot).items():
                if name == "models":
                    if _digest_names(snapshot) != shown:
                        shown, sent = _digest_names(snapshot), {}
                        yield _format_event(name, html)
                elif sent.get(name) != html:
                    sent[name] = html
                    yield _format_event(name, html)

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _digest_names(snapshot: Snapshot) -> str:
    """Which models a page shows, in what order; a page that was loaded while the server was away shows none."""
    names = "\n".join(model.name for model in snapshot.models)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _format_event(name: str, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.splitlines())
    return f"event: {name}\n{lines}\n"
