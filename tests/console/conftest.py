"""The console in process: the real application over a simulated server and updater."""

import re
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette

from common.clock import SystemClock
from common.tokens import Tokens, make_entry, make_token
from console.access import AccessRules
from console.app import Options, build_app
from console.upstream import Upstream
from tests.console.simulated_upstream import SimulatedUpstream


class Browser:
    """A browser without scripts: keeps cookies, and sends a page's own forms."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self.client, self.token = client, token

    async def see(self, path: str, *, status: int = 200, **headers: str) -> str:
        """A page's HTML."""
        answer = await self.client.get(path, headers=headers)
        assert answer.status_code == status
        return answer.text

    async def send(self, path: str, *, page: str = "", files: Any = None, **fields: str) -> httpx.Response:  # noqa: ANN401
        """Send a form with the token of the page that it stands on."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', await self.see(page or path))
        assert found is not None
        return await self.client.post(path, data={"csrf": found[1]} | fields, files=files)

    async def log_in(self) -> None:
        """Log in as wang."""
        answer = await self.send("/login", token=self.token)
        assert answer.status_code == 303


@pytest.fixture
def upstream() -> SimulatedUpstream:
    """The simulated server and updater."""
    return SimulatedUpstream()


@pytest.fixture
def rules() -> AccessRules:
    """Who is let in."""
    return AccessRules()


@pytest.fixture
def may_operate() -> bool:
    """Whether operators may act."""
    return True


@pytest.fixture
async def browser(upstream: SimulatedUpstream, rules: AccessRules, may_operate: bool) -> AsyncIterator[Browser]:  # noqa: FBT001  a fixture
    """A browser before the console."""
    token = make_token()
    entry = make_entry("wang", token, "")
    options = Options(rules, lambda: Tokens({entry.digest: entry}), may_operate)
    app = cast("Starlette", build_app(options, lambda: cast("Upstream", upstream), SystemClock()))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:50080") as client,
    ):
        yield Browser(client, token)
