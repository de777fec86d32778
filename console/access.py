"""Who may see and do what: sessions, CSRF, the host names under which browsers come, the headers of every page.

Pure decisions stand here as functions; `AccessMiddleware` is the ASGI middleware that applies them.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.sessions import Session, Sessions

COOKIE = "hotslot_console"
CSRF_FIELD = "csrf"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
# Scripts and styles come from the console alone, and none stands in a page. Pictures that were just sent are shown from
# the page itself (data:, blob:).
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_known_host(host: str, listens_on: Sequence[str], public_hosts: Sequence[str]) -> bool:
    """Whether a browser came under one of our names; a page elsewhere that points its own name at us does not.

    Args:
        host: the Host header.
        listens_on: addresses without port, as in a URL.
        public_hosts: names of a proxy, each with its port if it has one.
    """
    bare = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return host.lower() in {name.lower() for name in public_hosts} or bare.lower() in {
        name.lower() for name in (*LOCAL_NAMES, *listens_on)
    }


def is_same_origin(origin: str, host: str, public_hosts: Sequence[str]) -> bool:
    """Whether a form was sent from one of our pages. Browsers send Origin with every POST; "null" is foreign."""
    if not origin:
        return True  # no browser; the form's token is required all the same
    try:
        place = urlsplit(origin).netloc.lower()
    except ValueError:  # a bracket without end
        return False
    return place in {host.lower(), *(name.lower() for name in public_hosts)}


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The hosts and addresses under which the console answers, and whether reading needs a login."""

    listens_on: tuple[str, ...] = ()
    public_hosts: tuple[str, ...] = ()
    base_path: str = ""
    needs_login: bool = False  # also for reading


class AccessMiddleware:
    """Checks every request before a page sees it, and adds the headers of every response."""

    def __init__(self, app: ASGIApp, rules: AccessRules, sessions: Sessions) -> None:
        self._app, self._rules, self._sessions = app, rules, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_known_host(host, self._rules.listens_on, self._rules.public_hosts):
            sentence = f"this console is not known as {host[:80]!r}; name the host in console.public_hosts\n"
            await PlainTextResponse(sentence, 421)(scope, receive, send)
            return
        self._strip_base_path(scope)
        session = self._find_session(headers)
        is_new = session is None
        session = session or self._sessions.begin()
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["session"], state["csrf"], state["new_session"] = session, self._sessions.csrf(session), None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_file = path.startswith("/static/") or path == "/healthz"
        is_open = is_file or path == "/login"
        if self._rules.needs_login and not session.operator and not is_open:
            await RedirectResponse(f"{self._rules.base_path}/login", 303)(
                scope, receive, self._dressed(send, scope, None)
            )
            return
        if scope["method"] not in ("GET", "HEAD") and not is_same_origin(
            headers.get("origin", ""), host, self._rules.public_hosts
        ):
            await PlainTextResponse("the form comes from another site\n", 403)(scope, receive, send)
            return
        wants_cookie = is_new and not is_file
        await self._app(scope, receive, self._dressed(send, scope, session if wants_cookie else None))

    def _find_session(self, headers: Headers) -> Session | None:
        return self._sessions.find(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def _strip_base_path(self, scope: Scope) -> None:
        """Whether a proxy keeps the path under which it shows us or removes it, the pages are the same."""
        base = self._rules.base_path
        if base and (scope["path"] == base or scope["path"].startswith(base + "/")):
            scope["path"] = scope["path"].removeprefix(base) or "/"
            scope["raw_path"] = scope["path"].encode()

    def _dressed(self, send: Send, scope: Scope, session: Session | None) -> Send:
        async def dress(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
                chosen = scope["state"]["new_session"] or session
                if chosen is not None:
                    headers.append("set-cookie", self._cookie(chosen, scope))
            await send(message)

        return dress

    def _cookie(self, session: Session, scope: Scope) -> str:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        path = f"{self._rules.base_path}/"
        return f"{COOKIE}={self._sessions.write(session)}; Path={path}; HttpOnly; SameSite=Strict{secure}"
