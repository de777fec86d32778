"""Settings that cannot be read are refused with file or variable, the reason and what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from common.logs import Logger
from common.settings import CONFIG_VARIABLE, ENV_PREFIX, SettingsInvalid, load_settings
from common.settings_reload import SettingsReloader
from inference.server.settings import ServerSettings
from tests.common.clock import KeptLog, SimClock
from tests.common.users import without_rights
from updater.settings import UpdaterSettings

GOOD = '[[models]]\nname = "shapes"\n'
MAX_SENTENCE = 500


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file, good, with no variables of this machine."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    path = tmp_path / "hotslot.toml"
    path.write_text(GOOD)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def refusal(kind: type[ServerSettings] = ServerSettings) -> str:
    """The sentence with which the settings are refused."""
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(kind)
    return str(refused.value)


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "GBK": (f"# 设置\n{GOOD}".encode("gbk"), "not UTF-8: byte 0xc9 in line 1; save it as UTF-8"),
    "GBK in line 3": (f"{GOOD}# 设置\n".encode("gbk"), "not UTF-8: byte 0xc9 in line 3; save it as UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "nested arrays": (b"x = " + b"[" * 5000, "its brackets are nested too deeply; remove them"),
    "nested tables": (b"x = " + b"{x = " * 5000, "its brackets are nested too deeply; remove them"),
    "digits": (GOOD.encode() + b"q = " + b"9" * 5000, "a number with thousands of digits; write a smaller one"),
    "large": (b"#" * (9 << 20), "has more than 8388608 bytes"),
    "syntax": (b"a = = 1", "not TOML: Invalid value (at line 1, column 5)"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_decoded_is_refused(file: Path, name: str) -> None:
    """With its name, what is wrong, and what to do."""
    content, says = UNREADABLE[name]
    file.write_bytes(content)
    sentence = refusal()
    assert says in sentence
    assert sentence.startswith(str(file)[:90])
    assert len(sentence) < MAX_SENTENCE


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    """Windows editors write it."""
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_settings(ServerSettings).models[0].name == "shapes"


def make_folder(file: Path) -> None:
    """A folder in the file's place."""
    file.unlink()
    file.mkdir()


def make_pipe(file: Path) -> None:
    """A pipe that nobody writes to, in the file's place."""
    file.unlink()
    os.mkfifo(file)


def make_loop(file: Path) -> None:
    """A link to itself in the file's place."""
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "no such file; name one with --config or HOTSLOT_CONFIG"),
        (make_folder, "is a folder, not a file"),
        (make_pipe, "is no regular file"),
        (make_loop, "is a link to itself"),
    ],
)
def test_what_is_no_file_is_refused(file: Path, damage: Callable[[Path], None], says: str) -> None:
    """At once; a pipe is not waited for."""
    damage(file)
    assert says in refusal()


def test_a_file_without_permission_is_refused(file: Path) -> None:
    """The sentence names the permission."""
    file.chmod(0)
    with without_rights():
        sentence = refusal()
    assert "this user may not read it; give it read permission" in sentence


def test_a_name_that_is_too_long_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not shown whole."""
    monkeypatch.setenv(CONFIG_VARIABLE, f"{file}{'x' * 5000}")
    sentence = refusal()
    assert "cannot be read: file name too long; name another file" in sentence
    assert len(sentence) < MAX_SENTENCE


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("HOTSLOT_MODELS", "x", "HOTSLOT_MODELS"),
        ("HOTSLOT_MODELS", "[{]", "HOTSLOT_MODELS"),
        ("HOTSLOT_SERVER", "x", "HOTSLOT_SERVER"),
        ("hotslot_server", "x", "hotslot_server"),
        ("HOTSLOT_CALLERS", "{", "HOTSLOT_CALLERS"),
        ("HOTSLOT_CALLERS", "9" * 5000, "HOTSLOT_CALLERS"),
    ],
)
def test_a_variable_that_is_not_json_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: str
) -> None:
    """The sentence names the variable, not the file."""
    assert load_settings(ServerSettings).models[0].name == "shapes", file
    monkeypatch.setenv(variable, value)
    assert refusal().startswith(f"{key}: not JSON; write a whole table or list as JSON")


def test_a_variable_that_may_be_text_is_not_accused_of_being_no_json(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one of the same section that must be JSON."""
    monkeypatch.setenv("HOTSLOT_SERVER__HOST", "127.0.0.1")
    monkeypatch.setenv("HOTSLOT_SERVER", "oops")
    assert refusal().startswith("HOTSLOT_SERVER: not JSON"), file


def test_a_variable_that_is_nested_too_deeply_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a hundred thousand brackets."""
    monkeypatch.setenv("HOTSLOT_CALLERS", "[" * 100_000)
    sentence = refusal()
    assert "nested too deeply" in sentence
    assert len(sentence) < MAX_SENTENCE, file


@pytest.mark.parametrize("line", ['{key} = "{long}"', '"{long}" = 1', "{key} = {digits}"])
@pytest.mark.parametrize("section", ["server", "logs", "tls"])
def test_a_long_value_is_not_shown_whole(file: Path, section: str, line: str) -> None:
    """Nor is a long key, nor a number that Python does not write out."""
    key = {"server": "port", "logs": "level", "tls": "metrics"}[section]
    written = line.format(key=key, long="x" * 9000, digits=f"0x{'f' * 5000}")
    file.write_text(f"{GOOD}[{section}]\n{written}\n")
    sentence = refusal()
    assert sentence.startswith(f"{section}.")
    assert len(sentence) < MAX_SENTENCE


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("kind", [ServerSettings, UpdaterSettings])
def test_a_reload_of_a_file_that_cannot_be_decoded_keeps_the_settings(
    file: Path, kind: type[ServerSettings], name: str
) -> None:
    """The log has `settings_refused`; the next good file is taken over."""
    log = KeptLog()
    reloader = SettingsReloader(
        load_settings(kind), lambda: load_settings(kind), cast("Logger", log), SimClock(), lambda _: {}
    )
    file.write_bytes(UNREADABLE[name][0])
    found = reloader.read()
    reloader.refuse(found, found.refusal)
    assert UNREADABLE[name][1] in reloader.state.failure
    assert log.events == ["settings_refused"]

    file.write_text(f"{GOOD}# changed\n")
    reloader.accept(reloader.read())
    assert reloader.state.failure == ""
