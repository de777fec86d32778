"""`hotslot serve`: one child, its exit code, every signal passed on once, and a hint when it is ready."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from cli import serve
from cli.settings import PROJECT_FOLDER, read_settings
from tests.cli.conftest import Hotslot
from tests.cli.standin import StandIn

# Tells its parent to end as soon as it can be told itself; ends with 7 when it is asked by SIGTERM.
ASKS_TO_END = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
os.kill(os.getppid(), signal.{name})
while True:
    signal.pause()
"""


def write_settings(folder: Path, port: int = 0) -> None:
    """Settings of a server of one model, on a port, without metrics of the server's."""
    content = f'[[models]]\nname = "shapes"\n[server]\nport = {port}\nmetrics_port = -1\n'
    (folder / "hotslot.toml").write_text(content)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_stack_in_order(name: str) -> None:
    """Ctrl-C, a supervisor's TERM and a closed terminal all become one SIGTERM, and its exit code is ours."""
    before = signal.getsignal(signal.SIGINT)
    command = (sys.executable, "-c", ASKS_TO_END.format(name=name))
    assert serve.run_stack(command, lambda ended: None) == 7
    assert before == signal.getsignal(signal.SIGINT)


def test_a_killed_stack_is_told_as_shells_tell_it() -> None:
    """128 + the signal."""
    command = (sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert serve.run_stack(command, lambda ended: None) == 137


def test_a_server_without_models_says_how_to_bring_one_in(
    hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts all the same, since a model can come later; the stack's exit code is passed on."""
    write_settings(tmp_path)
    monkeypatch.setattr(serve, "STACK_COMMAND", (sys.executable, "-c", "raise SystemExit(70)"))
    ended = hotslot("serve")
    assert (ended.code, "hotslot bundle import DIR --model shapes" in ended.err) == (70, True)


def test_a_taken_port_is_one_sentence(hotslot: Hotslot, tmp_path: Path) -> None:
    """Nothing is started, and the way out is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_settings(tmp_path, port)
        ended = hotslot("serve")
    assert ended.code == 1
    assert f"something listens at 127.0.0.1:{port} already" in ended.err
    assert "HOTSLOT_SERVER__PORT" in ended.err


def test_the_updaters_port_is_looked_at_too(hotslot: Hotslot, tmp_path: Path) -> None:
    """Two stacks on one machine: the second says so, instead of an updater that never comes up."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_settings(tmp_path)
        with (tmp_path / "hotslot.toml").open("a") as file:
            file.write(f"[updater]\nmetrics_port = {port}\n")
        ended = hotslot("serve")
    assert ended.code == 1
    assert f"something listens at 127.0.0.1:{port} already" in ended.err
    assert "HOTSLOT_UPDATER__METRICS_PORT" in ended.err


def test_the_demo_needs_its_model_in_the_settings(hotslot: Hotslot, tmp_path: Path) -> None:
    """One sentence instead of a model that nobody serves."""
    (tmp_path / "hotslot.toml").write_text('[[models]]\nname = "mine"\n[server]\nport = 0\nmetrics_port = -1\n')
    ended = hotslot("serve", "--demo")
    assert (ended.code, '[[models]] name = "shapes"' in ended.err) == (1, True)


def test_a_hub_is_served_only_where_the_updater_asks(hotslot: Hotslot, tmp_path: Path) -> None:
    """Without an endpoint nobody would ask it."""
    write_settings(tmp_path)
    with (tmp_path / "hotslot.toml").open("a") as file:
        file.write("[updater]\nmetrics_port = -1\n")
    ended = hotslot("serve", "--serve-hub", "hub")
    assert (ended.code, "hub_endpoint" in ended.err) == (2, True)


def test_a_ready_server_says_what_to_try(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three lines to paste, once health says SERVING."""
    write_settings(tmp_path, int(server.address.rpartition(":")[2]))
    serve.announce(read_settings(), threading.Event())
    said = capsys.readouterr().err
    assert 'hotslot predict examples/shapes/pictures/two-red-circles.png "there are two red circles"' in said
    assert "hotslot status" in said
    assert f"grpcurl -plaintext {server.address} list" in said
    assert (PROJECT_FOLDER / serve.DEMO_PICTURE).is_file()


def test_a_stack_that_ended_is_not_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The announcer lets go when the stack has ended before it was ready."""
    write_settings(tmp_path, 1)
    ended = threading.Event()
    ended.set()
    serve.announce(read_settings(), ended)
    assert capsys.readouterr().err == ""


def test_the_stack_s_program_is_there() -> None:
    """What `serve` starts is what deploy/run-stack starts."""
    assert " ".join(serve.STACK_COMMAND[1:]) in (PROJECT_FOLDER / "deploy" / "run-stack").read_text()
    assert os.access(PROJECT_FOLDER / "deploy" / "run-stack", os.X_OK)
