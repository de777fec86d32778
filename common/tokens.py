"""Bearer tokens: makes them, and finds the caller to whom one was given.

A token is 256 random bits, so its plain SHA-256 is enough on disk: there is nothing to guess, and a slow hash would
cost every call (docs/explanation/decisions/tls-and-tokens.md). The file has a line for each token:

    NAME sha256:64-HEXADECIMAL-DIGITS [DATE]
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock
from common.durable import read_bounded, write_atomic
from common.reload import FileUnusable, Reloaded, ReloadLog

MAX_FILE_BYTES = 1 << 20
MAX_TOKEN_BYTES = 4096
PREFIX = "hotslot_"  # by which scanners find a token that was published by mistake
HEADER = "authorization"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_RANDOM_BYTES = 32
_LINE = re.compile(rf"({NAME_PATTERN})\s+sha256:([0-9a-f]{{64}})(?:\s+(\d{{4}}-\d\d-\d\d))?")
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
_SHOWN_DIGITS = 12  # of a hash, as its id


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One line of the file."""

    name: str  # of the caller
    digest: str  # SHA-256 of the token, hexadecimal
    date: str = ""  # on which it was made

    @property
    def id(self) -> str:
        """By which people tell the tokens of one caller apart."""
        return self.digest[:_SHOWN_DIGITS]

    def __str__(self) -> str:
        """As in the file."""
        return f"{self.name} sha256:{self.digest} {self.date}".rstrip()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The valid tokens. A caller may have several, so that one can be replaced without a gap."""

    entries: Mapping[str, TokenEntry]  # by digest

    def find(self, token: str) -> str:
        """The name of the caller to whom a token was given; empty if it is none.

        How long this takes depends on the hash of the token, which its sender cannot choose.
        """
        entry = self.find_entry(token)
        return entry.name if entry is not None else ""

    def find_entry(self, token: str) -> TokenEntry | None:
        """The entry of a token; None if it is none. See `find`."""
        digest = _hash(token)
        entry = self.entries.get(digest)
        return entry if entry is not None and hmac.compare_digest(entry.digest, digest) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The callers that have a token, each once."""
        return tuple(dict.fromkeys(entry.name for entry in self.entries.values()))


def make_token() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def make_entry(name: str, token: str, date: str) -> TokenEntry:
    """The line for a token."""
    return TokenEntry(name, _hash(token), date)


def parse_bearer(value: str | bytes) -> str:
    """The token in the value of an `authorization` header; empty if it has another form."""
    found = _BEARER.fullmatch(value) if isinstance(value, str) and len(value) <= MAX_TOKEN_BYTES else None
    return found[1] if found is not None else ""


def parse_tokens(text: str) -> Tokens:
    """Parse the content of a file.

    Raises:
        FileUnusable: a line is malformed.
    """
    found: dict[str, TokenEntry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        if not bare:
            continue
        row = _LINE.fullmatch(bare)
        if row is None:
            raise FileUnusable(
                f"line {number} of the tokens file is not NAME sha256:HASH; `hotslot token new` adds one"
            )
        found[row[2]] = TokenEntry(row[1], row[2], row[3] or "")
    return Tokens(found)


def load_tokens(path: Path) -> Tokens:
    """Read a file of tokens.

    Raises:
        FileUnusable: it cannot be read, is malformed, or everybody may write it.
    """
    text, mode = _read_file(path)
    if mode & stat.S_IWOTH:
        raise FileUnusable(f"every user of this machine may write the tokens file (mode {mode & 0o777:04o})")
    return parse_tokens(text)


def _read_file(path: Path) -> tuple[str, int]:
    """The content and the mode of a file of tokens.

    Raises:
        FileUnusable: it cannot be read.
    """
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8"), path.stat().st_mode
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        sentence = f"the tokens file cannot be read: {reason}; this process runs as user {os.geteuid()}"
        raise FileUnusable(sentence) from error
    except ValueError as error:
        raise FileUnusable(f"the tokens file is no text of at most {MAX_FILE_BYTES} bytes") from error


def watch_tokens(path: Path, log: ReloadLog, clock: Clock) -> Reloaded[Tokens]:
    """The tokens of a file, loaded again when it changes.

    Raises:
        FileUnusable: it cannot be used.
    """

    def load(_current: Tokens | None) -> Tokens:
        return load_tokens(path)

    def describe(tokens: Tokens) -> Mapping[str, object]:
        return {"tokens": len(tokens.entries), "callers": list(tokens.names)}

    return Reloaded("tokens", (path,), load, log, clock, describe)


def write_tokens(path: Path, *, added: TokenEntry | None = None, removed: Iterable[TokenEntry] = ()) -> None:
    """Change a file of tokens; its other lines stay as they are. Creates the file if it is missing.

    Everybody may read it: without the tokens, their hashes are of no use.

    Raises:
        OSError: it was not changed.
        FileUnusable: it cannot be read, or is malformed.
    """
    text = _read_file(path)[0] if os.path.lexists(path) else ""
    parse_tokens(text)
    gone = {entry.digest for entry in removed}
    lines = [line for line in text.splitlines() if not any(digest in line for digest in gone)]
    lines += [str(added)] if added is not None else []
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def read_token(path: Path) -> str:
    """The token that a client sends, from a file of its own.

    Raises:
        FileUnusable: the file cannot be read, or has no token.
    """
    try:
        token = read_bounded(path, MAX_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise FileUnusable(f"the token file cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise FileUnusable("the token file has no token, which is one line of ASCII") from error
    if not parse_bearer(f"Bearer {token}"):
        raise FileUnusable("the token file has no token, which is one line of ASCII")
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
