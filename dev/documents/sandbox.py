"""A folder in which the commands of pages run: the checkout's files, settings and state of its own, free ports."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.settings import inherit_environment
from dev.documents.blocks import ROOT
from dev.harness.process import free_port

READY_SECONDS = 600.0  # importing both demo models, on a busy machine
STOP_SECONDS = 60.0
# The ports of the pages, and the settings that choose others.
PORTS = {
    "50051": "SERVER__PORT",
    "50080": "CONSOLE__PORT",
    "9095": "SERVER__METRICS_PORT",
    "9096": "UPDATER__METRICS_PORT",
}
_OWN = frozenset({"state", "hotslot.toml", ".git", ".bench"})


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where commands run, and with what."""

    folder: Path
    ports: Mapping[str, str]  # port of the pages → free port
    environment: Mapping[str, str]

    def page_folder(self, page: str) -> Path:
        """A folder for the commands of one page: its files do not meet those of another; the state is shared."""
        folder = self.folder / page.replace("/", "-").removesuffix(".md")
        if not folder.exists():
            _fill(folder)
            (folder / "state").symlink_to(self.folder / "state")
            (folder / "hotslot.log").symlink_to(self.folder / "hotslot.log")
        return folder


def _fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name not in _OWN:
            (folder / entry.name).symlink_to(entry)
    shutil.copy(ROOT / "hotslot.toml", folder / "hotslot.toml")


@contextlib.contextmanager
def demo_stack(folder: Path) -> Iterator[Sandbox]:
    """Runs what `make serve` runs, until the block ends.

    Args:
        folder: new; everything lies in it.
    """
    _fill(folder)
    (folder / "state").mkdir()
    ports = {page: str(free_port()) for page in PORTS}
    environment = {
        **inherit_environment(),
        **{f"HOTSLOT_{PORTS[page]}": port for page, port in ports.items()},
        "PATH": f"{ROOT / '.venv/bin'}:{ROOT / '.tools/bin'}:{os.environ['PATH']}",
        "COLUMNS": "160",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "cli.main", "serve", "--demo"]
    with (folder / "hotslot.log").open("wb") as log:
        stack = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.PIPE, text=True)
    try:
        said = wait_for(stack, "hotslot is ready", READY_SECONDS)
        if "hotslot is ready" not in said:
            raise RuntimeError(f"the demo did not start:\n{said}")
        yield Sandbox(folder, ports, environment)
    finally:
        stack.send_signal(signal.SIGINT)
        try:
            stack.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            stack.kill()
            stack.communicate()


def wait_for(process: subprocess.Popen[str], text: str, seconds: float) -> str:
    """What a process has written to its standard error until `text` comes, it ends, or the time is over."""
    said = ""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        while process.stderr is not None and text not in said:
            line = process.stderr.readline()
            if not line:
                break
            said += line
    finally:
        timer.cancel()
    return said
