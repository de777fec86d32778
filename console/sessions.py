"""Browsers' sessions: signed in a cookie, and valid as long as the token that began them.

A session ends twelve hours after it began, at logout, when its token is no longer in the tokens file or is another
operator's there, and when the console is restarted.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from common.clock import Clock
from common.json_load import load_json
from common.tokens import TokenEntry, Tokens

SESSION_SECONDS = 12 * 3600.0
MAX_ENDED = 4096  # sessions that were ended before their time
_MAX_COOKIE_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session."""

    nonce: str
    operator: str = ""  # name of the token; empty: not logged in
    ends_at: float = 0.0  # clock seconds
    token_digest: str = ""  # of the token that began it, as in the tokens file, which is no secret


class SessionSigner:
    """Signs sessions with a key that lives as long as the process: a restart ends all sessions."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    def write(self, session: Session) -> str:
        """A session as the value of a cookie."""
        fields = [session.nonce, session.operator, session.ends_at, session.token_digest]
        body = base64.urlsafe_b64encode(json.dumps(fields).encode())
        return f"{body.decode()}.{self._sign('session', body)}"

    def read(self, value: str, now: float) -> Session | None:
        """The session in a cookie; None if it was changed, is another process's, or is over."""
        body, _, signature = value[:_MAX_COOKIE_CHARS].partition(".")
        if not hmac.compare_digest(self._sign("session", body.encode()).encode(), signature.encode()):
            return None
        nonce, operator, ends_at, token_digest = load_json(base64.urlsafe_b64decode(body))
        return Session(nonce, operator, ends_at, token_digest) if now < ends_at else None

    def csrf(self, session: Session) -> str:
        """The token of a session: its forms carry it, and links that begin work."""
        return self._sign("csrf", f"{session.nonce} {session.operator}".encode())

    def _sign(self, use: str, content: bytes) -> str:
        return hmac.new(self._key, use.encode() + b"\0" + content, hashlib.sha256).hexdigest()


class EndedSessions:
    """The sessions that were ended before their time, at most so many.

    When it is full, it forgets those that began first, and takes every session that began no later than these for
    ended: operators may have to log in again, but a session that was ended never becomes valid.
    """

    def __init__(self, limit: int = MAX_ENDED) -> None:
        self._limit = limit
        self._ends_at: dict[str, float] = {}  # by nonce
        self._all_until = 0.0  # sessions that would end by then count as ended

    def add(self, session: Session, now: float) -> None:
        """End a session."""
        self._ends_at = {nonce: ends_at for nonce, ends_at in self._ends_at.items() if ends_at > now}
        self._ends_at[session.nonce] = session.ends_at
        if len(self._ends_at) > self._limit:
            first = min(self._ends_at, key=self._ends_at.__getitem__)
            self._all_until = max(self._all_until, self._ends_at.pop(first))

    def has(self, session: Session) -> bool:
        """Whether a session was ended."""
        return session.nonce in self._ends_at or session.ends_at <= self._all_until


class Sessions:
    """Begins, finds and ends sessions. Used in the event loop."""

    def __init__(self, clock: Clock, tokens: Callable[[], Tokens] | None, ended: EndedSessions | None = None) -> None:
        """There are none yet.

        Args:
            clock: of the process.
            tokens: the valid tokens now; None: nobody can log in.
            ended: the sessions that were ended before their time.
        """
        self._clock, self._tokens, self._signer = clock, tokens, SessionSigner()
        self._ended = ended or EndedSessions()

    def begin(self, entry: TokenEntry | None = None) -> Session:
        """A new session, of a token's owner if one is given."""
        ends_at = self._clock.monotonic() + SESSION_SECONDS
        nonce = secrets.token_urlsafe(16)
        return Session(nonce, ends_at=ends_at) if entry is None else Session(nonce, entry.name, ends_at, entry.digest)

    def end(self, session: Session) -> None:
        """End an operator's session now, wherever its cookie is. One without an operator may do nothing anyway."""
        if session.operator:
            self._ended.add(session, self._clock.monotonic())

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it is no valid one."""
        session = self._signer.read(cookie, self._clock.monotonic()) if cookie else None
        return session if session is not None and self.is_valid(session) else None

    def find_owner(self, token: str) -> TokenEntry | None:
        """The entry of a token that somebody logs in with."""
        return self._tokens().find_entry(token) if self._tokens is not None else None

    def is_valid(self, session: Session) -> bool:
        """Whether a session still has its rights. Ask again after each wait, and before each act."""
        if self._clock.monotonic() >= session.ends_at:
            return False
        if not session.operator:
            return True
        if self._ended.has(session) or self._tokens is None:
            return False
        entry = self._tokens().entries.get(session.token_digest)
        return entry is not None and entry.name == session.operator

    def write(self, session: Session) -> str:
        """The value of a session's cookie."""
        return self._signer.write(session)

    def csrf(self, session: Session) -> str:
        """The token of a session's forms."""
        return self._signer.csrf(session)
