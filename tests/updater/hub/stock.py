"""Runs the hub's stock download against a faulty hub, and prints the result as JSON.

    python -m tests.updater.hub.stock URL MODEL HUB_FOLDER PLACE

HUB_FOLDER is the model's folder of the hub, with the revisions v1.0.0, master and other; faults are armed over HTTP.
"""

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelscope_hub.compat.snapshot_download import snapshot_download

WEIGHTS = "model.safetensors"
Facts = dict[str, Any]


class Stock:
    """One hub, and downloads from it."""

    def __init__(self, url: str, model: str, hub: Path, place: Path) -> None:
        self.url, self.model, self.hub, self.place = url, model, hub, place

    def arm(self, *lines: str) -> None:
        """Let this go wrong, and nothing else."""
        body = "\n".join(lines).encode()
        request = urllib.request.Request(f"{self.url}/_faults", body, method="PUT")  # noqa: S310  a hub of the test
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310  the same

    def download(self, name: str, revision: str = "v1.0.0", **more: Any) -> Path:  # noqa: ANN401  of the SDK
        """A download into a folder of its own."""
        options = {"cache_dir": str(self.place / name), "endpoint": self.url, **more}
        return Path(snapshot_download(self.model, revision=revision, **options))

    # Each is one weakness; says what there is to see.

    def names_lead_outside(self) -> Facts:
        """Files that are written beside the folder that was asked for."""
        inner = self.place / "outside" / "a" / "b"
        absolute = self.place / "absolute"
        for name in ("../../climbed", str(absolute)):
            self.arm(f"files list={name}")
            self.download("outside-cache", local_dir=str(inner))
        return {"climbed": (self.place / "outside" / "climbed").exists(), "absolute": absolute.exists()}

    def files_without_a_hash_are_not_checked(self) -> Facts:
        """A flipped bit that the download does not detect."""
        self.arm("files unhashed", f"file:{WEIGHTS} flip at=3")
        content = (self.download("unhashed") / WEIGHTS).read_bytes()
        return {"is_wrong": content != (self.hub / "v1.0.0" / WEIGHTS).read_bytes()}

    def an_incomplete_snapshot_counts_later(self) -> Facts:
        """The download fails; then the folder is handed out all the same."""
        self.arm(f"file:{WEIGHTS} status=404")
        failed = _fails(lambda: self.download("half"))
        folder = self.download("half", local_files_only=True)
        return {"failed": failed, "has_weights": (folder / WEIGHTS).exists()}

    def a_file_is_dropped_with_a_warning(self) -> Facts:
        """The folder comes back without it."""
        self.arm(f"file:{WEIGHTS} status=404")
        folder = self.download("dropped", continue_on_error=True)
        return {"has_weights": (folder / WEIGHTS).exists(), "has_others": (folder / "configuration.json").exists()}

    def a_moved_branch_is_rewritten_in_place(self) -> Facts:
        """Open files change, and deleted files stay."""
        self.arm()
        before = self.download("moved", "master")
        first = (before / WEIGHTS).read_bytes()
        shutil.rmtree(self.hub / "master")
        (self.hub / "other").rename(self.hub / "master")
        after = self.download("moved", "master")
        return {
            "same_folder": before == after,
            "was_rewritten": first != (before / WEIGHTS).read_bytes(),
            "kept_deleted": (after / "vocab.json").exists() and not (self.hub / "master" / "vocab.json").exists(),
        }

    def a_hub_that_is_down_fails_what_is_cached(self) -> Facts:
        """All of it is there, and it is not handed out."""
        self.arm()
        folder = self.download("cached")
        self.arm("any status=503")
        return {"is_there": (folder / WEIGHTS).exists(), "failed": _fails(lambda: self.download("cached"))}


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:  # noqa: BLE001  of any class: only the failure is reported
        return True
    return False


def main() -> int:
    """Show all of them."""
    url, model, hub, place = sys.argv[1:]
    stock = Stock(url, model, Path(hub), Path(place))
    weaknesses = (
        stock.names_lead_outside,
        stock.files_without_a_hash_are_not_checked,
        stock.an_incomplete_snapshot_counts_later,
        stock.a_file_is_dropped_with_a_warning,
        stock.a_hub_that_is_down_fails_what_is_cached,
        stock.a_moved_branch_is_rewritten_in_place,
    )
    print(json.dumps({one.__name__: one() for one in weaknesses}))  # noqa: T201  its answer
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
