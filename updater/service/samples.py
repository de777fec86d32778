"""The requests of callers that two revisions answered differently, as operators see them by UpdatesService.

The server writes them (`inference/server/model/samples`, which also deletes them), if `server.keep_samples` allows: a
folder for each comparison, named by its time and the update's id, in the state folder's samples/MODEL/.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.durable import read_bounded
from common.errors import NotFound
from common.json_load import load_json
from common.paths import SAMPLES_FOLDER
from hotslot.updates.v1 import updates_pb2 as pb

MAX_SHOWN = 100  # requests of one update
MAX_ROW_BYTES = 256 << 10
MAX_PICTURE_BYTES = 16 << 20
_MAX_TEXT_CHARS = 1000  # of a shown text or answer


def list_kept(state: Path, model: str, update_id: str) -> Iterator[pb.KeptRequest]:
    """The first kept requests of an update, in the order in which they were answered; malformed files are left out."""
    for path in _list_rows(state, model, update_id)[:MAX_SHOWN]:
        try:
            row = load_json(read_bounded(path, MAX_ROW_BYTES))
            yield _to_message(row, path)
        except (OSError, ValueError, TypeError, KeyError):
            continue


def read_picture(state: Path, model: str, update_id: str, name: str) -> bytes:
    """The picture of a kept request.

    Raises:
        NotFound: no request of this name is kept for the update, or it has no picture.
    """
    for path in _list_rows(state, model, update_id):
        if _name(path) == name:
            try:
                return read_bounded(path.with_suffix(".picture"), MAX_PICTURE_BYTES)
            except (OSError, ValueError):
                break
    message = f"no picture is kept of a request {name[:64]!r} of this update"
    raise NotFound(message, reason="SAMPLE_UNKNOWN", field="name")


def _list_rows(state: Path, model: str, update_id: str) -> list[Path]:
    """The files of an update's requests, which the server numbers."""
    try:
        folders = sorted(path for path in (state / SAMPLES_FOLDER / model).iterdir() if path.is_dir())
        ours = [path for path in folders if update_id and path.name.endswith(f"-{update_id}")]
        return [row for folder in ours for row in sorted(folder.glob("*.json"))]
    except OSError:
        return []


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _to_message(row: dict[str, Any], path: Path) -> pb.KeptRequest:
    answers = [
        pb.KeptAnswer(text=text[:_MAX_TEXT_CHARS], active=before[:_MAX_TEXT_CHARS], candidate=after[:_MAX_TEXT_CHARS])
        for text, before, after in zip(row["texts"], row["previous_answers"], row["answers"], strict=True)
    ]
    return pb.KeptRequest(
        name=_name(path),
        request_id=row["request_id"],
        item_id=row["item_id"],
        answers=answers,
        has_picture=path.with_suffix(".picture").is_file(),
    )
