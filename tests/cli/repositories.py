"""Kinds of repositories as they are published; `hotslot hub doctor` is tried on each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.harness.revisions import MODEL, publish_scripted
from tests.updater.scripted_hub import ScriptedHub
from updater.hub.modelscope import LISTING_LIMIT

WEIGHTS = "model.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 1962354176\n"
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Repository:
    """One kind of repository."""

    title: str  # for the page of its outputs
    publish: Callable[[Path, ScriptedHub], None]  # into the folder of a hub
    follow: str = "releases"
    is_usable: bool = True


def _publish(hub: Path, *names: str, **script: Any) -> None:  # noqa: ANN401  of Script
    for name in names:
        publish_scripted(hub, name, **script)


def _only_master(hub: Path, server: ScriptedHub) -> None:
    server.commit = "5e8c4ac9d1f20b7730c8a4b8d4a1c0ffee123456"
    _publish(hub, "master")


def _tags_of_two_parts(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "master", "v0.1", "v1.0", "v1.0.1")


def _odd_tags(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "master", "v2-test", "1.0.0.1", "01.0", "v1", "stable")


def _without_hashes(hub: Path, server: ScriptedHub) -> None:
    _publish(hub, "master")

    def change(rows: Rows) -> None:
        for row in rows:
            if row["Path"] == WEIGHTS:
                row["Sha256"] = ""

    server.change_rows = change


def _subfolders(hub: Path, server: ScriptedHub) -> None:
    _publish(hub, "v1.0")
    rows = [{"Path": f"assets/{number}.png", "Type": "blob", "Size": 9, "Sha256": "0" * 64} for number in range(3)]
    server.change_rows = lambda listed: listed.extend(rows)


def _lfs_pointer(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "master")
    folder = hub / MODEL / "master"
    (folder / WEIGHTS).write_bytes(_POINTER)
    manifest = next(folder.glob("*manifest.json"))
    row = json.loads(manifest.read_text(encoding="utf-8"))
    for file in row["files"]:
        if file["name"] == WEIGHTS:
            file["size"] = len(_POINTER)
    manifest.write_text(json.dumps(row), encoding="utf-8")


def _another_task(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "v1.0", configuration={"task": "text-generation", "model": {"type": "qwen2"}})


def _too_many_files(hub: Path, server: ScriptedHub) -> None:
    _publish(hub, "master")
    server.cut_at = LISTING_LIMIT
    rows = [
        {"Path": f"{number}.txt", "Type": "blob", "Size": 1, "Sha256": "0" * 64} for number in range(LISTING_LIMIT + 9)
    ]
    server.change_rows = lambda listed: listed.extend(rows)


def _incomplete(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "v1.0", "v1.1")
    (hub / MODEL / "v1.1" / WEIGHTS).unlink()


def _empty(hub: Path, _server: ScriptedHub) -> None:
    _publish(hub, "v1.0")
    shutil.rmtree(hub / MODEL / "v1.0")


BRANCH = "branch:master"
ALL: dict[str, Repository] = {
    "releases, only master": Repository("Only `master`, while releases are followed", _only_master, is_usable=False),
    "only master": Repository("Only `master`", _only_master, BRANCH),
    "two parts": Repository("Tags of two and three parts", _tags_of_two_parts),
    "odd tags": Repository("Odd tags", _odd_tags, is_usable=False),
    "no hashes": Repository("A file without a hash", _without_hashes, BRANCH),
    "subfolders": Repository("Files in subfolders", _subfolders),
    "LFS pointer": Repository("Weights that are a Git LFS pointer", _lfs_pointer, BRANCH, is_usable=False),
    "another task": Repository("A model of another task", _another_task, is_usable=False),
    "too many files": Repository("More files than the hub lists", _too_many_files, BRANCH, is_usable=False),
    "incomplete": Repository("A revision that is still being uploaded", _incomplete),
    "empty": Repository("No revision at all", _empty, is_usable=False),
}
