"""`hotslot config …`, the reference of the settings, and the help of all commands."""

import tomllib
from pathlib import Path

import pytest

from cli.config import list_settings, render_reference
from cli.settings import PROJECT_FOLDER
from common.exit_codes import ExitCode
from dev.harness.certificates import Authority, ListenerFiles
from tests.cli.conftest import Hotslot
from updater.core.record import APPROVABLE, HeldFor

GOOD = '[[models]]\nname = "shapes"\n[server]\nport = 50123\nmetrics_port = -1\n'
BAD = """
[[models]]
name = "Shapes"
[server]
port = 99999
prot = 1
grace_seconds = "long"
[runner]
standby = "perhaps"
[logs]
level = "loud"
"""


def test_good_settings_say_where_the_server_will_listen(hotslot: Hotslot, tmp_path: Path) -> None:
    """Exit code 0; the addresses and models are shown."""
    (tmp_path / "hotslot.toml").write_text(GOOD)
    ended = hotslot("config", "check")
    assert ended.code == 0
    assert ended.out.startswith("ok  hotslot.toml")
    assert "127.0.0.1:50123" in ended.out
    assert "shapes (visual-entailment, auto)" in ended.out


def test_all_mistakes_are_reported_at_once(hotslot: Hotslot, tmp_path: Path) -> None:
    """Exit code 2; each mistake has a line with key, value found, and what is allowed."""
    (tmp_path / "bad.toml").write_text(BAD)
    ended = hotslot("config", "check", "--config", "bad.toml")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in ended.err.splitlines()[2:]}

    assert ended.code == 2
    assert ended.err.splitlines()[0] == "error: the settings have 6 mistakes"
    assert lines == {
        "models[0].name": "'Shapes' text, `^[a-z0-9][a-z0-9._-]{0,127}$`",
        "server.port": "99999 integer, 0 to 65535",
        "server.prot": "1 unknown key; did you mean server.port?",
        "server.grace_seconds": "'long' number, more than 0, at most 300",
        "runner.standby": "'perhaps' true or false",
        "logs.level": '\'loud\' "debug" or "info" or "warning" or "error"',
    }


def test_the_environment_is_checked_too(hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value of a variable is reported like one in the file."""
    (tmp_path / "hotslot.toml").write_text(GOOD)
    monkeypatch.setenv("HOTSLOT_SERVER__PORT", "many")
    ended = hotslot("config", "check")
    assert (ended.code, "server.port" in ended.err) == (2, True)


def test_a_state_folder_too_deep_for_sockets_is_a_mistake(
    hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported here, before the stack fails to bind its sockets."""
    (tmp_path / "hotslot.toml").write_text(GOOD)
    monkeypatch.setenv("HOTSLOT_STATE_DIR", "/" + "d" * 100)
    ended = hotslot("config", "check")
    shown = " ".join(ended.err.split())
    assert ended.code == ExitCode.WRONG_USE
    assert "has 129 bytes, limit 107" in shown


def test_a_stop_time_shorter_than_the_drain_is_a_mistake(hotslot: Hotslot, tmp_path: Path) -> None:
    """The server must not be killed while it drains; the message names both settings."""
    (tmp_path / "hotslot.toml").write_text(f"{GOOD}grace_seconds = 45\n")
    ended = hotslot("config", "check")
    shown = " ".join(ended.err.split())
    assert (ended.code, "watchdog.stop_seconds 60" in shown) == (2, True)
    assert "more than 60, which is server.drain_delay_seconds + server.grace_seconds" in shown

    (tmp_path / "hotslot.toml").write_text(f"{GOOD}grace_seconds = 45\n[watchdog]\nstop_seconds = 61\n")
    assert hotslot("config", "check").code == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"a = = 1", "not TOML"),
        ("# 设置".encode("gbk"), "save it as UTF-8"),
        (b"a = " + b"[" * 5000, "brackets are nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(
    hotslot: Hotslot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    """Exit code 2; the message says what is wrong with the file."""
    monkeypatch.setenv("COLUMNS", "300")  # so that a long path leaves the message in one line
    if content is not None:
        (tmp_path / "bad.toml").write_bytes(content)
    ended = hotslot("config", "check", "-c", "bad.toml")
    assert (ended.code, says in ended.err) == (2, True)


def test_show_prints_values_that_differ_with_their_default(hotslot: Hotslot, tmp_path: Path) -> None:
    """Each line has key and value, and the default if it differs."""
    (tmp_path / "hotslot.toml").write_text(GOOD)
    rows = [line.split() for line in hotslot("config", "show").out.splitlines()]
    assert ["server.port", "50123", "50051"] in rows
    assert ["server.host", '"127.0.0.1"'] in rows
    assert ["models[0].name", '"shapes"', "required"] in rows


def test_show_prints_each_table_of_a_list(hotslot: Hotslot, tmp_path: Path) -> None:
    """Lists in sections too; a setting without a value is unset."""
    more = '[[updater.webhooks]]\nurl = "https://ops.example/"\n[[updater.webhooks]]\nurl = "https://b.example/"\n'
    (tmp_path / "hotslot.toml").write_text(GOOD + more)
    rows = [line.split() for line in hotslot("config", "show").out.splitlines()]
    assert ["updater.webhooks[1].url", '"https://b.example/"', "required"] in rows
    assert ["updater.webhooks[0].token_file", "unset"] in rows


def test_the_reference_in_the_docs_is_up_to_date(hotslot: Hotslot) -> None:
    """After a change of a setting, run `hotslot config reference > docs/configuration.md`."""
    page = (PROJECT_FOLDER / "docs" / "configuration.md").read_text()
    assert render_reference() == page == hotslot("config", "reference").out


def test_every_setting_has_a_description() -> None:
    """The reference has no empty meaning."""
    assert [row.key for row in list_settings() if not row.meaning] == []


def test_every_number_has_a_range() -> None:
    """The reference says what is allowed, also where a limit itself is not."""
    allowed = {row.key: row.allowed for row in list_settings() if row.kind in ("integer", "number")}
    assert [key for key, words in allowed.items() if not words] == []
    assert allowed["updater.models.NAME.observe.significance"] == "more than 0, less than 1"


@pytest.mark.parametrize("name", ["hotslot.toml", "deploy/hotslot-http.toml"])
def test_the_demo_settings_are_correct(hotslot: Hotslot, name: str) -> None:
    """Both files pass `hotslot config check`."""
    ended = hotslot("config", "check", "--config", str(PROJECT_FOLDER / name))
    assert (ended.code, "shapes" in ended.out, "addresses" in ended.out) == (0, True, True)


def test_the_http_demo_differs_only_in_its_hub() -> None:
    """All other settings are the same."""
    names = ("hotslot.toml", "deploy/hotslot-http.toml")
    plain, http = (tomllib.loads((PROJECT_FOLDER / name).read_text()) for name in names)
    for model in ("shapes", "addresses"):
        del plain["updater"]["models"][model]["hub_folder"]
        del http["updater"]["models"][model]["hub_model"]
    assert http["updater"].keys() - plain["updater"].keys() == {"hub_endpoint"}
    del http["updater"]["hub_endpoint"]
    assert plain == http


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "predict",
        "hub",
        "golden",
        "bundle",
        "config",
        "updates",
        "status",
        "hub add",
        "hub list",
        "hub serve",
        "bundle import",
        "bundle list",
        "bundle show",
        "config check",
        "config show",
        "config reference",
        "golden record",
        "golden check",
        "golden show",
    ],
)
def test_the_help_of_every_command_has_an_example_and_a_next_step(hotslot: Hotslot, command: str) -> None:
    """`--help` ends with a command to paste and what to do next."""
    ended = hotslot(*command.split(), "--help")
    assert ended.code == 0
    assert f"Example:  hotslot {command}" in ended.out
    assert "Next:" in ended.out


def test_the_help_of_approve_names_the_reasons_that_can_be_approved(hotslot: Hotslot) -> None:
    """As `hotslot updates show` prints them."""
    named = set(hotslot("updates", "approve", "--help").out.replace(",", " ").replace(";", " ").split())
    assert {reason for reason in HeldFor if reason.value in named} == APPROVABLE


def test_the_help_names_all_commands_and_exit_codes(hotslot: Hotslot) -> None:
    """They are on one screen."""
    ended = hotslot("--help")
    for word in ("serve", "predict", "status", "healthcheck", "bundle", "config", "Exit codes"):
        assert word in ended.out


def test_a_wrong_command_line_is_reported_without_a_traceback(hotslot: Hotslot) -> None:
    """Exit code 2."""
    ended = hotslot("predict")
    assert (ended.code, "Missing argument" in ended.err, "Traceback" in ended.err) == (2, True, False)


def test_every_listener_is_checked(hotslot: Hotslot, tmp_path: Path) -> None:
    """The health port and the updater's metrics too: their address, and that no two have the same."""
    (tmp_path / "hotslot.toml").write_text(f'{GOOD}[health]\nport = 50124\nhost = "192.0.2.1"\n')
    ended = hotslot("config", "check")
    assert (ended.code, "192.0.2.1:50124" in ended.out, "127.0.0.1:9096" in ended.out) == (0, True, True)
    assert "on this machine: cannot listen on 192.0.2.1:50124: 192.0.2.1 is not this machine's address" in ended.out

    (tmp_path / "hotslot.toml").write_text(f'{GOOD}[health]\nport = 50124\nhost = "not a host"\n')
    assert (hotslot("config", "check").code, "health.host" in hotslot("config", "check").err) == (2, True)
    (tmp_path / "hotslot.toml").write_text(f"{GOOD}[health]\nport = 50123\n")
    ended = hotslot("config", "check")
    shown = " ".join(ended.err.split())
    assert (ended.code, "127.0.0.1:50123 is the address of server.port too" in shown) == (2, True)


def test_a_public_address_without_protection_is_told(hotslot: Hotslot, tmp_path: Path) -> None:
    """In one sentence for each door; on loopback nothing is said."""
    assert "TLS:" not in _checked(hotslot, tmp_path, GOOD)
    public = f'{GOOD}host = "0.0.0.0"\n[updater]\nmetrics_host = "::"\n'
    shown = _checked(hotslot, tmp_path, public)
    assert "the gRPC port 0.0.0.0:50123 has no TLS" in shown
    assert "the gRPC port 0.0.0.0:50123 answers all who reach it; set server.tokens_file" in shown
    assert "the updater metrics port [::]:9096 has no TLS" in shown


def test_certificates_and_tokens_are_checked(hotslot: Hotslot, tmp_path: Path) -> None:
    """Pair, key's permissions, dates, names; callers without a token."""
    authority = Authority(tmp_path / "ca")
    listener = ListenerFiles(tmp_path, authority.sign("server", ("DNS:shop.example",), days=1))
    (tmp_path / "tokens").touch()
    tls = "".join(f'{key} = "{value}"\n' for key, value in listener.settings.items())
    content = f'{GOOD}tokens_file = "tokens"\n[tls]\n{tls}[[callers]]\nname = "shop"\n'
    listener.files.key.chmod(0o644)

    shown = _checked(hotslot, tmp_path, content)

    for sentence in (
        "access TLS, tokens",
        "every user of this machine may read the key file (mode 0644)",
        "the certificate is for shop.example, not for 127.0.0.1",
        "the tokens file has no token",
        "[[callers]] shop has no token in the tokens file",
    ):
        assert sentence in shown
    listener.files.key.write_bytes(authority.sign("other").key.read_bytes())
    (tmp_path / "tokens").write_text("what\n")
    ended = hotslot("config", "check")
    errors = " ".join(ended.err.split())
    assert ended.code == 2
    assert "tls the key does not belong to the certificate" in errors
    assert "line 1 of the tokens file is not NAME sha256:HASH" in errors


def _checked(hotslot: Hotslot, folder: Path, content: str) -> str:
    (folder / "hotslot.toml").write_text(content)
    ended = hotslot("config", "check")
    assert ended.code == 0, ended.err
    return " ".join(ended.out.split())
