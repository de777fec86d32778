"""Every block of every page says what it is, and what it shows exists: commands, options, targets, settings, names."""

import json
import tomllib
from pathlib import Path

import pytest

from cli.monitoring.relay.settings import RelaySettings
from cli.settings import read_settings
from common.settings import SettingsInvalid
from dev.documents.blocks import (
    COMMANDS,
    DATA,
    PROGRAMS,
    ROOT,
    SETTINGS,
    Block,
    list_pages,
    parse_blocks,
    read_all_blocks,
)
from dev.documents.commands import find_hotslot_mistake, find_mistake, list_lines, split_commands
from dev.documents.names import find_unknown

BLOCKS = read_all_blocks()
KNOWN = COMMANDS | PROGRAMS | {SETTINGS} | DATA
PAGES = pytest.mark.parametrize("page", list_pages(), ids=lambda path: str(path.relative_to(ROOT)))
EXAMPLES = "a block says what it is in its first fence, for example ```sh; text is what a program prints"


def list_ids(blocks: list[Block]) -> list[str]:
    """Ids of tests."""
    return [block.place for block in blocks]


def is_json(text: str) -> bool:
    """Whether it can be read."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def add_hubs(text: str) -> str:
    """Settings in which each model has a hub; a page shows only what it is about."""
    models = tomllib.loads(text).get("updater", {}).get("models", {})
    for name, section in models.items():
        if not {"hub_model", "hub_folder"} & set(section):
            header, hub = f"[updater.models.{name}]\n", 'hub_folder = "hub"\n'
            text = text.replace(header, header + hub) if header in text else f"{header}{hub}{text}"
    return text


def of(*languages: str) -> list[Block]:
    """The blocks of these languages."""
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_says_what_it_is() -> None:
    """A block without a language would be checked by nothing."""
    assert [f"{block.place}: {block.language!r}; {EXAMPLES}" for block in BLOCKS if block.language not in KNOWN] == []


def test_commands_of_pages_exist() -> None:
    """Each `hotslot …` parses with the command line's own parser, each target and module exists."""
    found = [
        f"{block.place}: {problem}"
        for block in of(*COMMANDS)
        for line in list_lines(block)
        for words in split_commands(line)
        if (problem := find_mistake(words))
    ]
    assert found == []


def test_data_of_pages_can_be_read() -> None:
    """JSON, and one document or one for each line."""
    unreadable = [
        block.place
        for block in of("json")
        if not any(map(is_json, (f"[{block.text}]", "[" + ",".join(block.text.splitlines()) + "]")))
    ]
    assert unreadable == []


@pytest.mark.parametrize("block", of(SETTINGS), ids=list_ids(of(SETTINGS)))
def test_settings_of_pages_are_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes that read them; the models that a block configures are added to it."""
    content = tomllib.loads(block.text)
    if block.text.startswith("# alert-relay.toml"):
        assert len(RelaySettings.model_validate(content).targets) == len(content["targets"])
        return
    served = "".join(f'[[models]]\nname = "{name}"\n' for name in content.get("updater", {}).get("models", ["a"]))
    (tmp_path / "hotslot.toml").write_text(("" if "models" in content else served) + add_hubs(block.text))
    monkeypatch.setenv("HOTSLOT_CONFIG", str(tmp_path / "hotslot.toml"))
    try:
        read_settings()
    except SettingsInvalid as error:
        pytest.fail(f"{block.place}: {error}")


@PAGES
def test_names_of_pages_exist(page: Path) -> None:
    """What stands in backticks: commands, targets, paths, metrics, settings, identifiers."""
    assert find_unknown(str(page.relative_to(ROOT)), page.read_text("utf-8")) == []


def test_what_does_not_exist_is_found() -> None:
    """A command, an option, a missing argument, a target, a metric, a setting, a path, a reason, an event."""
    assert find_hotslot_mistake(["updates", "stop"]) == "`hotslot updates` has no command 'stop'"
    assert "No such option: --nobody" in find_hotslot_mistake(["status", "--nobody"])
    assert find_hotslot_mistake(["updates", "show"]) == "`hotslot updates show` needs update_id"
    assert find_hotslot_mistake(["updates", "show"], whole=False) == ""
    assert find_hotslot_mistake(["healthcheck", "-adr", "x"]) != ""
    assert find_mistake(["make", "coffee"]) == "the Makefile has no target coffee"
    names = "`hotslot_nothing_total` `server.porch` `NO_SUCH_REASON_1` `never_happened_at_all`"
    text = f"{names} `updater/nothing.py` `make tea`"
    assert len(find_unknown("page.md", text)) == 6


def test_blocks_and_their_marks_are_read() -> None:
    """A command over two lines, a written file, and the reason beside a block that is not run."""
    commands = "make \\\n  gpu\ncat > a <<'EOF'\nmake tea\nEOF\n"
    text = f"a\n\n<!-- not run: needs a GPU -->\n```sh\n{commands}```\n\n```text\nb\n```\n"
    first, second = parse_blocks("page.md", text)
    assert (first.mark, first.note, first.is_run, second.language) == ("not run", "needs a GPU", False, "text")
    assert list_lines(first) == ["make    gpu", "cat > a"]
