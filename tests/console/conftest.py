"""The console in process: the real application over a simulated server and updater."""

import re
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette

from common.tokens import Tokens, make_entry, make_token
from console.access import AccessRules
from console.app import Options, build_app
from console.page import Console
from console.upstream import Upstream
from tests.common.clock import SimClock
from tests.console.simulated_upstream import SimulatedUpstream


class Browser:
    """A browser without scripts: keeps cookies, and sends a page's own forms."""

    def __init__(self, client: httpx.AsyncClient, token: str, console: Console) -> None:
        self.client, self.token, self.console = client, token, console

    async def see(self, path: str, *, status: int = 200, **headers: str) -> str:
        """A page's HTML."""
        answer = await self.client.get(path, headers=headers)
        assert answer.status_code == status
        return answer.text

    async def send(self, path: str, *, page: str = "", files: Any = None, **fields: str) -> httpx.Response:  # noqa: ANN401
        """Send a form with the token of the page that it stands on."""
        return await self.client.post(
            path, data={"csrf": self.csrf_of(await self.see(page or path))} | fields, files=files
        )

    def csrf_of(self, page: str) -> str:
        """The token of a page's forms."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
        assert found is not None
        return found[1]

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
def clock() -> SimClock:
    """The console's clock."""
    return SimClock()


class TokensFile:
    """The tokens file: wang has a token."""

    def __init__(self) -> None:
        self.token = make_token()
        self.give("wang")

    def give(self, *names: str) -> None:
        """Say whose the token is; nobody's, if no name is given."""
        entries = [make_entry(name, self.token, "") for name in names]
        self.tokens = Tokens({entry.digest: entry for entry in entries})


@pytest.fixture
def tokens_file() -> TokensFile:
    """Who may log in."""
    return TokensFile()


@pytest.fixture
async def browser(
    upstream: SimulatedUpstream,
    rules: AccessRules,
    may_operate: bool,  # noqa: FBT001  a fixture
    clock: SimClock,
    tokens_file: TokensFile,
) -> AsyncIterator[Browser]:
    """A browser before the console."""
    options = Options(rules, lambda: tokens_file.tokens, may_operate)
    app = cast("Starlette", build_app(options, lambda: cast("Upstream", upstream), clock))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:50080") as client,
    ):
        yield Browser(client, tokens_file.token, app.state.console)
