"""What the environment gives to a hub: the token, if one is configured on purpose, and the proxies."""

import os
import re
import urllib.request
from pathlib import Path

from updater.core.ports import EffectFailed

MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")  # what fits into a header and a cookie alike


class TokenSource:
    """Reads the token anew for every request, so that it can be changed without a restart; shows it to nobody."""

    def __init__(self, file: Path | None, variable: str) -> None:
        """Read nothing yet.

        Args:
            file: holds the token; None: none.
            variable: name of the variable that holds it; empty: none.
        """
        self._file = file
        self._variable = variable

    def __call__(self) -> str:
        """The token; empty if none is configured.

        Raises:
            EffectFailed: DENIED: one is configured and is not there, or is none.
        """
        if self._file is not None:
            return _checked(self._from_file(self._file), "updater.hub_token_file")
        if self._variable:
            return _checked(os.environ.get(self._variable, ""), "updater.hub_token_variable")
        return ""

    @staticmethod
    def _from_file(path: Path) -> str:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_TOKEN_BYTES + 2)
        except OSError as error:
            why = (error.strerror or "it failed").lower()
            message = f"the file of updater.hub_token_file cannot be read: {why}"
            raise EffectFailed.denied("TOKEN_UNREADABLE", message) from error
        return content.decode(errors="replace").strip()


def proxy_for(scheme: str, host: str) -> str:
    """The proxy of HTTPS_PROXY, HTTP_PROXY and NO_PROXY for a host; empty if it is asked directly."""
    if urllib.request.proxy_bypass(host):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all", "")


def _checked(token: str, key: str) -> str:
    if _TOKEN.fullmatch(token):
        return token
    message = f"{key} gives no token: it is empty or holds characters that a token cannot have"
    raise EffectFailed.denied("TOKEN_UNREADABLE", message)
