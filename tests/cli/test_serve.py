"""`hotslot serve`: runs the stack, forwards signals, returns its exit code, and prints a hint when it is ready."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from cli import serve
from cli.settings import PROJECT_FOLDER, read_settings
from common.address import unix_target
from common.bundle import Bundle, Provenance, read_committed
from common.paths import CONTROL_SOCKET, make_run_folder
from common.sealing import ConvertLimits
from dev.harness.certificates import Authority, ListenerFiles
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer
from tests.cli.test_bundle import seal

# Sends a signal to its parent; exits with 7 on SIGTERM.
SIGNALS_ITS_PARENT = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
os.kill(os.getppid(), signal.{name})
while True:
    signal.pause()
"""


BOTH_DEMOS = """
[[models]]
name = "shapes"
[[models]]
name = "addresses"
task = "token-classification"
[updater.models.addresses]
hub_folder = "hub"
"""


def write_settings(folder: Path, port: int = 0) -> None:
    """Settings of a server of one model, on a port, without metrics of the server's."""
    content = f'[[models]]\nname = "shapes"\n[server]\nport = {port}\nmetrics_port = -1\n'
    (folder / "hotslot.toml").write_text(content)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_stack_in_order(name: str) -> None:
    """Ctrl-C, SIGTERM and a closed terminal are forwarded as one SIGTERM; the stack's exit code is returned."""
    before = signal.getsignal(signal.SIGINT)
    command = (sys.executable, "-c", SIGNALS_ITS_PARENT.format(name=name))
    assert serve.run_stack(command, lambda ended: None) == 7
    assert before == signal.getsignal(signal.SIGINT)


def test_a_killed_stack_has_the_exit_code_of_its_signal() -> None:
    """128 + the number of the signal."""
    command = (sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert serve.run_stack(command, lambda ended: None) == 137


def test_the_log_goes_to_a_file_and_the_terminal_keeps_what_people_read(
    hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--log` appends to the file; a stack that fails names the command that tells why."""
    write_settings(tmp_path)
    monkeypatch.setattr(serve, "STACK_COMMAND", (sys.executable, "-c", "print('{}'); raise SystemExit(70)"))
    (tmp_path / "hotslot.log").write_text("before\n")
    ended = hotslot("serve", "--log", "hotslot.log")
    assert (ended.code, (tmp_path / "hotslot.log").read_text()) == (70, "before\n{}\n")
    assert "the log goes to hotslot.log" in ended.err
    assert "it ended with exit code 70; `hotslot logs explain hotslot.log` says why" in ended.err

    monkeypatch.setattr(serve, "STACK_COMMAND", (sys.executable, "-c", "raise SystemExit(75)"))
    ended = hotslot("serve", "--log", "hotslot.log")
    assert (ended.code, "says why" in ended.err) == (75, False), "the stack has said why on the terminal"

    (tmp_path / "folder").mkdir()
    ended = hotslot("serve", "--log", "folder")
    assert (ended.code, "the log cannot be written to folder: Is a directory" in ended.err) == (1, True)


def test_a_server_without_a_bundle_says_how_to_import_one(
    hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts anyway, since the updater may fetch one; the stack's exit code is returned."""
    write_settings(tmp_path)
    monkeypatch.setattr(serve, "STACK_COMMAND", (sys.executable, "-c", "raise SystemExit(70)"))
    ended = hotslot("serve")
    assert (ended.code, "hotslot bundle import DIR --model shapes" in ended.err) == (70, True)


def test_a_port_in_use_is_reported_in_one_sentence(hotslot: Hotslot, tmp_path: Path) -> None:
    """Nothing is started, and the message names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_settings(tmp_path, port)
        ended = hotslot("serve")
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: in use by" in ended.err
    assert "HOTSLOT_SERVER__PORT" in ended.err


def test_the_updater_s_port_is_checked_too(hotslot: Hotslot, tmp_path: Path) -> None:
    """The second of two stacks on one machine says so, instead of running without an updater."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_settings(tmp_path)
        with (tmp_path / "hotslot.toml").open("a") as file:
            file.write(f"[updater]\nmetrics_port = {port}\n")
        ended = hotslot("serve")
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: in use by" in ended.err
    assert "HOTSLOT_UPDATER__METRICS_PORT" in ended.err


def test_the_demo_needs_its_model_in_the_settings(hotslot: Hotslot, tmp_path: Path) -> None:
    """Otherwise it would be imported and not served."""
    (tmp_path / "hotslot.toml").write_text('[[models]]\nname = "mine"\n[server]\nport = 0\nmetrics_port = -1\n')
    ended = hotslot("serve", "--demo")
    assert (ended.code, '[[models]] name = "shapes" or "addresses"' in ended.err) == (1, True)


def test_the_demo_imports_its_models_at_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the settings name, once, each with its hub folder; converted side by side, and announced before."""
    (tmp_path / "hotslot.toml").write_text(BOTH_DEMOS)
    settings, both_convert = read_settings(), threading.Barrier(2, timeout=20)
    imported: list[str] = []

    def convert(
        source: Path,
        state: Path,
        revision: str,
        limits: ConvertLimits,
        precision: str,
        *,
        digest: str,
        provenance: Provenance | None,
    ) -> Bundle:
        both_convert.wait()
        imported.append(source.parent.name)
        return seal(source, state, revision, limits, precision, digest=digest, provenance=provenance)

    serve.import_demo(settings, convert)
    assert sorted(imported) == ["addresses", "shapes"]
    assert "importing the demo models shapes and addresses, once: " in capsys.readouterr().err
    assert {name: row.revision for name, row in read_committed(tmp_path / "state").items()} == {
        "shapes": "v1.0.0",
        "addresses": "v1.0.0",
    }
    assert (tmp_path / "hub" / "addresses").is_dir()

    serve.import_demo(settings, convert)
    assert len(imported) == 2


def test_serving_a_hub_needs_the_updater_s_endpoint(hotslot: Hotslot, tmp_path: Path) -> None:
    """The message names the missing setting."""
    write_settings(tmp_path)
    with (tmp_path / "hotslot.toml").open("a") as file:
        file.write("[updater]\nmetrics_port = -1\n")
    ended = hotslot("serve", "--serve-hub", "hub")
    assert (ended.code, "hub_endpoint" in ended.err) == (2, True)


def test_a_ready_server_says_what_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three commands to paste, once the health service answers SERVING; it is asked on the control socket."""
    write_settings(tmp_path, 50123)
    control = make_run_folder(tmp_path / "state") / CONTROL_SOCKET
    server = ScriptedServer(addresses=(unix_target(control),))
    serve.announce(read_settings(), threading.Event(), Path("hotslot.log"))
    output = capsys.readouterr().err
    assert output.startswith("\nhotslot is ready at 127.0.0.1:50123. ")
    assert "logs explain hotslot.log" in output
    assert 'hotslot predict examples/shapes/pictures/two-red-circles.png "there are two red circles"' in output
    assert "hotslot status" in output
    assert "grpcurl -plaintext 127.0.0.1:50123 list" in output
    assert (PROJECT_FOLDER / serve.DEMO_PICTURE).is_file()

    listener = ListenerFiles(tmp_path, Authority(tmp_path / "ca").sign("server", ("DNS:shop.example",)))
    with (tmp_path / "hotslot.toml").open("a") as file:
        file.write('tokens_file = "tokens"\n[tls]\n')
        file.writelines(f'{key} = "{value}"\n' for key, value in listener.settings.items())
    serve.announce(read_settings(), threading.Event())
    output = capsys.readouterr().err
    assert "hotslot status --token-file TOKEN" in output
    flags = f'-cacert {tmp_path}/tls.crt -servername shop.example -H "authorization: Bearer $(cat TOKEN)"'
    assert f"grpcurl {flags} 127.0.0.1:50123 list" in output
    server.stop()


def test_a_stack_that_ended_is_not_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the stack ends before it is ready, nothing is printed."""
    write_settings(tmp_path, 1)
    ended = threading.Event()
    ended.set()
    serve.announce(read_settings(), ended)
    assert capsys.readouterr().err == ""


def test_serve_and_run_stack_start_the_same_program() -> None:
    """deploy/run-stack has the command of `hotslot serve`, and is executable."""
    assert " ".join(serve.STACK_COMMAND[1:]) in (PROJECT_FOLDER / "deploy" / "run-stack").read_text()
    assert os.access(PROJECT_FOLDER / "deploy" / "run-stack", os.X_OK)
