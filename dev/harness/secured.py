"""A stack's TLS and token for its callers in tests and chaos: files that change, and channels that trust them."""

from pathlib import Path
from typing import Any

import grpc

from common.tokens import make_entry, make_token, write_tokens
from dev.harness.certificates import Authority, ListenerFiles
from dev.harness.control import RECONNECT_OPTIONS


class Secured:
    """A listener with client certificates and tokens, and a caller that has both.

    Args:
        folder: everything lies in it; created.
        count: of the good pairs among which the listener can change.
    """

    def __init__(self, folder: Path, count: int = 1) -> None:
        self.authority = Authority(folder / "ca")
        self.pairs = [self.authority.sign(f"server-{number}") for number in range(count)]
        self.mine = self.authority.sign("caller")
        self.listener = ListenerFiles(folder / "tls", self.pairs[0], self.authority.certificate)
        self.tokens, self._token = folder / "tokens", make_token()
        write_tokens(self.tokens, added=make_entry("caller", self._token, ""))
        self._trust = grpc.ssl_channel_credentials(
            self.authority.certificate.read_bytes(), self.mine.key.read_bytes(), self.mine.certificate.read_bytes()
        )

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The settings."""
        return {"tls": dict(self.listener.settings), "server": {"tokens_file": str(self.tokens)}}

    def open_channel(self, address: str) -> grpc.Channel:
        """A channel that sends the token with every call."""
        credentials = grpc.composite_channel_credentials(self._trust, grpc.access_token_call_credentials(self._token))
        return grpc.secure_channel(address, credentials, options=RECONNECT_OPTIONS)
