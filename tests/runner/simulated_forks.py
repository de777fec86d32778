"""A fork server whose process does nothing; the test answers for it."""

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

from inference.fork_wire import ForkAnswer, send_answer
from inference.server.runner_client.fork_server import ForkServer
from tests.common.clock import SimClock

START_SECONDS = 30.0


class SimulatedForks:
    """The other end: its processes do nothing, and the test answers for them."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.server = ForkServer(self._command, START_SECONDS, self.clock)
        self.ends: list[socket.socket] = []
        self.engines: list[list[str]] = []  # of each start
        self.program = ["sleep", "60"]
        self.reports: list[tuple[str, dict[str, Any]]] = []

    def _command(self, engines: Sequence[str], descriptor: int) -> list[str]:
        self.engines.append(list(engines))
        self.ends.append(socket.socket(fileno=os.dup(descriptor)))
        return self.program

    async def start(self) -> None:
        """Start it, and answer for it that its imports are done."""
        self.begin()
        await self.answer(ForkAnswer(0))

    def begin(self) -> None:
        """Start it."""
        self.attach()
        self.server.start(["ofa"], {"PATH": "/usr/bin:/bin"})

    def attach(self) -> None:
        """Watch it."""
        self.server.attach(self._record, self._record)

    def _record(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        self.reports.append((event, fields))

    async def answer(self, answer: ForkAnswer) -> None:
        """Answer as the last process."""
        send_answer(self.ends[-1], answer)
        await settle()

    async def end(self) -> None:
        """The last process ends."""
        self.ends[-1].close()
        self.server._process.kill()  # type: ignore[union-attr]  # noqa: SLF001
        self.server._process.wait()  # type: ignore[union-attr]  # noqa: SLF001
        await settle()

    def close(self) -> None:
        """End it."""
        self.server.close()
        for end in self.ends:
            end.close()

    async def wait(self, seconds: float) -> None:
        """Let time pass, in ticks of a second."""
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            self.server.tick()
            await settle()


async def settle() -> None:
    """Let the loop call what is ready."""
    for _ in range(3):
        await asyncio.sleep(0)
