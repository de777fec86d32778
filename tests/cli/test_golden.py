"""`hotslot golden` on addresses: record, check and show."""

import json
import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer

SETTINGS = """
[[models]]
name = "addresses"
task = "token-classification"

[updater.models.addresses]
hub_folder = "hub"
golden = "set"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a set, in a working folder whose settings have an address model."""
    (tmp_path / "hotslot.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "addresses.txt").write_text("\ufeff浙江省 杭州\n\n北京市\n浙江省 杭州\n", encoding="utf-8")
    found = tmp_path / "set"
    found.mkdir()
    return found


def test_addresses_are_recorded_and_checked(hotslot: Hotslot, server: ScriptedServer, folder: Path) -> None:
    """An item a line of the file, once; the same answers pass, and a wrong expectation is named with the direction."""
    recorded = hotslot("golden", "record", "set", "--addresses", "addresses.txt", "--address", server.address)
    checked = hotslot("golden", "check", "--address", server.address)

    lines = [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    assert recorded.code == 0, recorded.err
    assert [line["addresses"] for line in lines] == [["浙江省 杭州"], ["北京市"]]
    assert lines[0]["answers"] == [[["prov", "浙江省", 0], ["city", "杭州", 4]]]
    assert (checked.code, checked.out.splitlines()[0]) == (0, "recorded answers: 2 of 2 (100.0%)")

    lines[0]["expected"] = [[["prov", "浙江省"], ["district", "杭州"]]]
    (folder / "golden.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    wrong = hotslot("golden", "check", "--address", server.address)
    shown = hotslot("golden", "show")

    assert wrong.code == 1
    assert "expected answers: 0 of 1 (0.0%)" in wrong.out
    assert "parts: 2 of 3 right, 3 found (micro-F1 0.667)" in wrong.out
    assert "most often: district → city (1)" in wrong.out
    assert "addresses   2, of which 1 have an expected answer" in shown.out
    assert "  district  50.0%" in shown.out


def test_a_ci_server_reads_the_check(hotslot: Hotslot, server: ScriptedServer, folder: Path, tmp_path: Path) -> None:
    """A case a question; a wrong answer is a failure with both answers, and the exit code stays 1."""
    lines = [
        {"item": "right", "addresses": ["浙江省 杭州"], "expected": [[["prov", "浙江省"], ["city", "杭州"]]]},
        {"item": "wrong", "addresses": ["北京市 <&>"], "expected": [[["city", "北京市"]]]},
    ]
    (folder / "golden.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    path = tmp_path / "report.xml"

    ended = hotslot("golden", "check", "--junit", str(path), "--address", server.address)

    suite = ET.fromstring(path.read_bytes())  # noqa: S314  our own
    cases = {case.get("classname"): case for case in suite}
    failure = cases["wrong"].find("failure")
    assert ended.code == 1
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert cases["right"].find("failure") is None
    assert cases["wrong"].get("name") == "北京市 <&>"
    assert failure is not None
    assert "expected" in str(failure.get("message"))
    half = hotslot("golden", "check", "--min-accuracy", "0.5", "--address", server.address)
    more = hotslot("golden", "check", "--min-accuracy", "0.51", "--address", server.address)
    assert (half.code, more.code) == (0, 1)


def test_items_are_sent_beside_each_other(hotslot: Hotslot, server: ScriptedServer, folder: Path) -> None:
    """Four at once here; what is refused for that is asked again, alone."""
    texts = [f"浙江省 {number}" for number in range(8)]
    (folder.parent / "addresses.txt").write_text("\n".join(texts), encoding="utf-8")
    server.meeting, server.overloads = threading.Barrier(4), 0
    recorded = hotslot("golden", "record", "set", "--addresses", "addresses.txt", "--address", server.address)
    server.meeting, server.overloads = None, 3
    checked = hotslot("golden", "check", "--address", server.address)

    lines = [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    assert recorded.code == 0, recorded.err
    assert [line["answers"][0][1][1] for line in lines] == [str(number) for number in range(8)]
    assert (checked.code, checked.out.splitlines()[0]) == (0, "recorded answers: 8 of 8 (100.0%)")
    assert len(server.tagged) == 8 + 8 + 3


def test_the_folder_of_a_set_of_addresses_is_made(hotslot: Hotslot, server: ScriptedServer, folder: Path) -> None:
    """With those above it; a folder without pictures to ask about is a mistake."""
    made = hotslot("golden", "record", "golden/new", "--addresses", "addresses.txt", "--address", server.address)
    missing = hotslot("golden", "record", "nowhere", "--address", server.address)

    assert made.code == 0, made.err
    assert (folder.parent / "golden" / "new" / "golden.jsonl").exists()
    assert (missing.code, "there is no folder nowhere" in missing.err) == (2, True)


def test_statements_are_for_pictures(hotslot: Hotslot, server: ScriptedServer, folder: Path) -> None:
    """The option of another task is refused, with the right one."""
    ended = hotslot("golden", "record", str(folder), "-s", "it is dark", "--address", server.address)

    assert ended.code == 2
    assert "give --addresses FILE" in ended.err
