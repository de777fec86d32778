"""Published revisions that a test can damage, and every adapter of the hub's port over them.

An adapter's tests are those of `test_hostile_hubs`: who adds one, adds a row to ADAPTERS.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.bundle import HubKind, HubLocation
from common.clock import SystemClock
from common.source import LISTING_SCHEMA, MANIFEST_NAME
from dev.harness.revisions import MODEL, publish_scripted
from tests.updater.scripted_hub import ScriptedHub
from updater.core.facts import HubFile, Release
from updater.core.ports import EffectFailed, Hub
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.folder import DirectoryHub
from updater.hub.modelscope import ModelScopeHub

Row = dict[str, Any]  # "name", "size", "sha256"


@dataclass(frozen=True)
class Shelf:
    """A folder hub, whose manifests say whatever a test wants."""

    hub: Path

    def publish(self, revision: str, **script: Any) -> None:  # noqa: ANN401  of model_folder
        """Put a good revision there."""
        publish_scripted(self.hub, revision, self.hub.parent / f"made-{revision}", **script)

    def file(self, revision: str, name: str) -> Path:
        """One of its files."""
        return self.hub / MODEL / revision / name

    def rows(self, revision: str) -> list[Row]:
        """What is listed."""
        rows: list[Row] = json.loads(self.file(revision, MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        return rows

    def relist(self, revision: str, change: Callable[[list[Row]], object]) -> None:
        """List something else."""
        rows = self.rows(revision)
        change(rows)
        text = json.dumps({"schema_version": LISTING_SCHEMA, "files": rows})
        self.file(revision, MANIFEST_NAME).write_text(text, encoding="utf-8")

    def replace(self, revision: str, name: str, content: bytes) -> None:
        """Publish other content of a file, and list it rightly."""
        self.file(revision, name).write_bytes(content)

        def change(rows: list[Row]) -> None:
            rows[:] = [row for row in rows if row["name"] != name]
            rows.append({"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})

        self.relist(revision, change)

    def withdraw(self, revision: str) -> None:
        """Take a revision away."""
        shutil.rmtree(self.hub / MODEL / revision)


@dataclass
class GullibleHub:
    """The worst adapter that can be: it passes on whatever is listed, and looks at nothing."""

    shelf: Shelf
    place: HubLocation = field(default=HubLocation(HubKind.FOLDER, MODEL))

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Whatever there is."""
        return tuple(path.name for path in (self.shelf.hub / MODEL).iterdir())

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """Whatever is listed."""
        try:
            rows = self.shelf.rows(revision)
        except FileNotFoundError as error:
            raise EffectFailed.permanent("REVISION_UNKNOWN", revision) from error
        return Release(revision, tuple(HubFile(row["name"], row["size"], row["sha256"]) for row in rows), "")

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """Whatever lies there, in one piece."""
        try:
            yield self.shelf.file(revision, name).read_bytes()[offset:]
        except FileNotFoundError as error:
            raise EffectFailed.not_ready("FILE_MISSING", name) from error


def gullible(shelf: Shelf, _stack: ExitStack) -> Hub:
    """In memory, as far as it matters."""
    return GullibleHub(shelf)


def folder(shelf: Shelf, _stack: ExitStack) -> Hub:
    """The embedded default."""
    return DirectoryHub(shelf.hub, MODEL, SystemClock())


def http(shelf: Shelf, stack: ExitStack) -> Hub:
    """ModelScope's protocol, from a server that says whatever the shelf does."""
    url = stack.enter_context(ScriptedHub(shelf.hub / MODEL)).url
    client = HubHttpClient(HubHttpOptions(url), SystemClock(), lambda: "", lambda _scheme, _host: "")
    return ModelScopeHub(client, f"acme/{MODEL}", SystemClock(), lambda _: False)


# By name: from a shelf to an adapter; what must be ended goes onto the stack.
ADAPTERS: dict[str, Callable[[Shelf, ExitStack], Hub]] = {"gullible": gullible, "folder": folder, "http": http}
