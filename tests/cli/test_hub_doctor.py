"""`hotslot hub doctor` on repositories as they are published; its outputs are those of docs/hub-doctor.md."""

import json
import os
from pathlib import Path

import pytest

from dev.harness.revisions import MODEL, publish_scripted
from tests.cli.conftest import Hotslot
from tests.cli.repositories import ALL, BRANCH
from tests.updater.scripted_hub import MODEL_ID, ScriptedHub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub-doctor.md"
MARK = "<!-- not run: tests/cli/test_hub_doctor.py compares it with what is printed for such a hub -->"
PRINT_VARIABLE = "DOCTOR_PAGE"  # a file: the outputs are appended to it, for the page


@pytest.mark.fault("H4")
@pytest.mark.parametrize("kind", ALL)
def test_a_repository_is_explained(kind: str, hotslot: Hotslot, tmp_path: Path) -> None:
    """As the page of the documentation shows."""
    repository = ALL[kind]
    with ScriptedHub(tmp_path / "hub" / MODEL, branches=("master",)) as server:
        repository.publish(tmp_path / "hub", server)
        before = sorted(tmp_path.rglob("*"))
        done = hotslot("hub", "doctor", MODEL_ID, "--endpoint", server.url, "--follow", repository.follow)
        assert sorted(tmp_path.rglob("*")) == before, "it is read only"
        shown = done.out.replace(f"127.0.0.1:{server.port}", "hub.example")
    _keep(repository.title, repository.follow, shown)

    assert done.code == (0 if repository.is_usable else 1)
    assert shown in PAGE.read_text(encoding="utf-8")


def test_a_model_of_the_settings_is_examined_beside_what_is_committed(hotslot: Hotslot, tmp_path: Path) -> None:
    """A folder hub, as `hotslot.toml` names it; --json has the same."""
    publish_scripted(tmp_path / "hub", "v1.0")
    text = f'[[models]]\nname = "{MODEL}"\n[updater.models.{MODEL}]\nhub_folder = "{tmp_path / "hub"}"\n'
    Path("hotslot.toml").write_text(text, encoding="utf-8")
    row = json.loads(hotslot("hub", "doctor", MODEL, "--json").out)
    assert [(one["name"], one["finding"]) for one in row["revisions"]] == [("v1.0", "take")]

    row = json.loads(hotslot("hub", "doctor", MODEL, "--json", "--follow", BRANCH).out)
    assert row["notes"] == ["the hub has no branch master; it has v1.0"]
    assert hotslot("hub", "doctor", "unknown").code == 2
    assert hotslot("hub", "doctor", MODEL, "--follow", "tags").code == 2


def test_a_hub_without_the_model_says_so(hotslot: Hotslot, tmp_path: Path) -> None:
    """In one sentence."""
    with ScriptedHub(tmp_path / "hub" / MODEL) as server:
        done = hotslot("hub", "doctor", "acme/other", "--endpoint", server.url)
    assert (done.code, "no such model" in done.err) == (1, True)


def _keep(title: str, follow: str, shown: str) -> None:
    path = os.environ.get(PRINT_VARIABLE)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(
                f"\n## {title}\n\n{MARK}\n```console\n$ hotslot hub doctor acme/shapes --follow {follow}\n{shown}```\n"
            )
