"""What no command can use is refused at once with a sentence: arguments, files, pipes, times."""

import os
from pathlib import Path

import pytest

from cli.healthcheck import check
from cli.main import run
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer

ODD = "\udcff"  # the byte ff of a command line, which is not UTF-8


def read(text: str) -> str:
    """Output without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("predict", "p.png", ODD), "argument 3"),
        (("predict", "p.png", "x", "-m", ODD), "the value of -m"),
        (("tag", ODD), "argument 2"),
        (("updates", "show", ODD), "argument 3"),
        (("updates", "history", "-m", ODD), "the value of -m"),
        (("updates", "pause", f"--reason={ODD}"), "the value of --reason"),
        (("hub", "add", "folder", ODD), "argument 4"),
    ],
)
def test_an_argument_that_is_not_utf8_is_named(hotslot: Hotslot, words: tuple[str, ...], named: str) -> None:
    """No request can hold it; the sentence shows its bytes."""
    done = hotslot(*words)
    assert f"{named} is not UTF-8 (" in read(done.err)
    assert "\\xff" in done.err
    assert done.code == 2


def test_a_probe_names_it_with_its_own_code(hotslot: Hotslot) -> None:
    """As grpc_health_probe does for wrong flags."""
    done = hotslot("healthcheck", "-addr=127.0.0.1:1", f"-service={ODD}")
    assert "the value of -service is not UTF-8" in done.err
    assert done.code == 1


def test_a_file_may_have_a_name_that_is_not_utf8(hotslot: Hotslot, tmp_path: Path, server: ScriptedServer) -> None:
    """Old archives have such names; as a statement it is refused."""
    (tmp_path / f"{ODD}.png").write_bytes(b"\x89PNG and more")
    done = hotslot("predict", f"{ODD}.png", "yes", "-a", server.address)
    text = hotslot("tag", f"{ODD}.png", "-a", server.address)
    assert done.code == 0
    assert "argument 2 is not UTF-8" in read(text.err)
    assert text.code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("token", "new", "b", "--file", "odd"), 1),
        (("logs", "explain", "odd"), 1),
        (("doctor", "--no-hub", "--log", "odd", "--archive", "report.tar.gz"), 1),
        (("predict", "odd", "x"), 1),
        (("golden", "record", "set", "-m", "addresses", "--addresses", "odd"), 1),
        (("alert-relay", "odd", "--check"), 2),
        (("config", "check", "-c", "odd"), 2),
        (("predict", "odd", "x", "--tls-ca", "odd"), 2),
    ],
)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device"])
def test_a_pipe_is_refused_at_once(
    hotslot: Hotslot, tmp_path: Path, words: tuple[str, ...], code: int, kind: str
) -> None:
    """It would be waited for without limit; so would an endless device."""
    odd = tmp_path / "odd"
    match kind:
        case "a pipe":
            os.mkfifo(odd)
        case "a folder":
            odd.mkdir()
        case _:
            odd.symlink_to("/dev/zero")
    (tmp_path / "hotslot.toml").write_text('[[models]]\nname = "addresses"\ntask = "token-classification"\n')
    done = hotslot(*words)
    assert "regular file" in read(done.err) or "is a folder, not a file" in read(done.err)
    assert done.code == code


def test_a_tokens_file_that_is_no_text_stays_as_it_is(hotslot: Hotslot, tmp_path: Path) -> None:
    """It is refused in a sentence."""
    (tmp_path / "tokens").write_bytes(b"\xff\xfe")
    done = hotslot("token", "new", "b", "--file", "tokens")
    assert "no text" in read(done.err)
    assert (done.code, (tmp_path / "tokens").read_bytes()) == (1, b"\xff\xfe")


def test_a_log_of_bytes_is_read(hotslot: Hotslot, tmp_path: Path) -> None:
    """What is not UTF-8 is no event; nor is a line without end."""
    (tmp_path / "log").write_bytes(b"\xff" * (3 << 20))
    done = hotslot("logs", "explain", "log")
    assert "no line is an event" in read(done.err)
    assert done.code == 1


@pytest.mark.parametrize("value", ["inf", "1e300", "100000"])
@pytest.mark.parametrize("words", [("predict", "p.png", "x"), ("tag", "x"), ("batch", "addresses.txt", "-o", "out")])
def test_a_timeout_has_a_limit(hotslot: Hotslot, words: tuple[str, ...], value: str) -> None:
    """Of a day; gRPC would end the call at once."""
    done = hotslot(*words, "-t", value)
    assert "86400" in done.err
    assert done.code == 2


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("-rpc-timeout=99999999h", "at most 24h"),
        ("-connect-timeout=9999999999999999999h", "at most 24h"),
        ("-rpc-header=X Y: z", "invalid RPC header"),
        ("-rpc-header=x: \N{SNOWMAN}", "invalid RPC header"),
    ],
)
def test_a_probe_refuses_what_grpc_cannot_do(flag: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the code of wrong flags."""
    code = check(["-addr=127.0.0.1:1", flag])
    assert told in capsys.readouterr().err
    assert code == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--operate",), "operate needs --tokens"),
        (("--host", "nope nope"), "host is neither"),
        (("--base-path", "x y"), "--base-path: "),
    ],
)
def test_the_console_says_which_option_is_wrong(hotslot: Hotslot, words: tuple[str, ...], told: str) -> None:
    """In words of the command line, without an address of a library's page."""
    done = hotslot("console", "--port", "0", *words)
    assert told in read(done.err)
    assert "pydantic" not in done.err
    assert done.code == 2


def test_a_refused_file_is_named_once(hotslot: Hotslot, tmp_path: Path) -> None:
    """With what it is instead."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    pipe, loop = hotslot("predict", "pipe", "x"), hotslot("batch", "loop", "-o", "out")
    assert read(pipe.err).startswith("error: cannot read pipe: not a regular file but a pipe; name a JPEG")
    assert read(loop.err) == "error: loop is a link to itself (loop)"
    assert (pipe.code, loop.code) == (1, 2)


def test_a_console_with_an_unusable_tokens_file_is_wrongly_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As every other command with such a file."""
    (tmp_path / "tokens").write_bytes(b"\xff")
    with pytest.raises(SystemExit) as ended:
        run(["console", "--tokens", "tokens", "--port", "0"])
    assert "tokens file is no text" in read(capfd.readouterr().err)
    assert ended.value.code == 2
