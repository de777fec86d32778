"""`hotslot hub serve` as a process of its own, as an operator starts it."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dev.harness.process import ROOT

LIMIT_SECONDS = 30.0
SHIPPED = ("cli.main", "hub", "serve")
FAULTY = ("dev.harness.faulty_hub",)


class ServeProcess:
    """One hub."""

    def __init__(self, program: Sequence[str], folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", *program, str(folder), "--port", "0", *options]
        path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,
        )
        self.url = str(self._first_line()["url"])

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, list[dict[str, Any]], str]:
        """Stop it; returns its exit code, its log, and its standard error."""
        self._process.send_signal(number)
        out, err = self._process.communicate(timeout=LIMIT_SECONDS)
        return self._process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()

    def destroy(self) -> None:
        """After a failed test: leave nothing."""
        self._process.kill()
        self._process.communicate()

    def _first_line(self) -> dict[str, Any]:
        """It says where it is; what came with it waits in the pipe."""
        out = self._process.stdout
        assert out is not None
        line, ends = b"", time.monotonic() + LIMIT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                assert selector.select(max(0.0, ends - time.monotonic())), "the hub did not start in time"
                letter = os.read(out.fileno(), 1)
                assert letter, self._process.communicate()[1].decode()
                line += letter
        row: dict[str, Any] = json.loads(line)
        return row


@contextlib.contextmanager
def serve(folder: Path, *options: str, program: Sequence[str] = SHIPPED) -> Iterator[ServeProcess]:
    """A hub that is gone afterwards."""
    process = ServeProcess(program, folder, *options)
    try:
        yield process
    finally:
        process.destroy()
