"""The token and the proxy of a hub, read from files and the environment."""

import os
import re
import urllib.request
from pathlib import Path

from common.durable import open_regular
from updater.core.ports import EffectFailed

MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")  # valid in a header and in a cookie


class TokenReader:
    """Reads the token for every request, so that it can be replaced without a restart. It is never logged."""

    def __init__(self, file: Path | None, variable: str) -> None:
        """Read nothing yet.

        Args:
            file: with the token; None without one.
            variable: environment variable with the token; empty without one.
        """
        self._file = file
        self._variable = variable

    def __call__(self) -> str:
        """The token; empty if none is configured.

        Raises:
            EffectFailed: the configured token is missing or malformed; of the kind DENIED.
        """
        if self._file is not None:
            return _check_token(self._read_file(self._file), "updater.hub_token_file")
        if self._variable:
            return _check_token(os.environ.get(self._variable, ""), "updater.hub_token_variable")
        return ""

    @staticmethod
    def _read_file(path: Path) -> str:
        try:
            with open_regular(path) as file:
                content = file.read(MAX_TOKEN_BYTES + 2)
        except OSError as error:
            why = (error.strerror or "it failed").lower()
            message = f"updater.hub_token_file cannot be read: {why}"
            raise EffectFailed.denied("TOKEN_UNREADABLE", message) from error
        return content.decode(errors="replace").strip()


def find_proxy(scheme: str, host: str) -> str:
    """The proxy for a host by HTTPS_PROXY, HTTP_PROXY and NO_PROXY; empty for a direct connection."""
    if urllib.request.proxy_bypass(host):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all", "")


def _check_token(token: str, key: str) -> str:
    if _TOKEN.fullmatch(token):
        return token
    message = f"{key} contains no valid token: it is empty or has characters that are not allowed in a token"
    raise EffectFailed.denied("TOKEN_UNREADABLE", message)
