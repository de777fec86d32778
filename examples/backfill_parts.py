"""The part of a backfill that Ray and Spark share: fixed parts of the work, each with a result file of its own.

A part's file appears whole or not at all, under a name that depends on the part alone. So a part may run twice, or be
started again after a crash of anything, and every picture has exactly one line.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotslot_client import Client, EntailmentItem, HotslotError

PART_ROWS = 250


@dataclass(frozen=True)
class Part:
    """Some pictures, and the file of their results."""

    paths: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Counts:
    """What a part has written."""

    rows: int
    failed: int
    is_new: bool  # it was not there already


def make_parts(pictures: Path, results: Path) -> list[Part]:
    """All pictures of a folder, in parts that are the same for every run over the same folder."""
    paths = sorted(str(path) for path in pictures.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
    results.mkdir(parents=True, exist_ok=True)
    return [
        Part(tuple(paths[first : first + PART_ROWS]), str(results / f"part-{first // PART_ROWS:06}.jsonl"))
        for first in range(0, len(paths), PART_ROWS)
    ]


def run_part(client: Client, part: Part, statements: Sequence[str]) -> Counts:
    """Judge the pictures of a part and write its file, unless it is there.

    Push-back, drains and restarts of servers are the client's business: it waits and sends again. Only an outage ends
    the part, by an exception: Ray and Spark then start it again.
    """
    target = Path(part.result)
    if target.exists():
        rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        return Counts(len(rows), sum("error" in row for row in rows), is_new=False)
    items = (EntailmentItem(Path(path), statements, key=path) for path in part.paths)
    rows = [*_rows(client, items)]
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    draft.replace(target)
    return Counts(len(rows), sum("error" in row for row in rows), is_new=True)


def _rows(client: Client, items: Iterator[EntailmentItem]) -> Iterator[dict[str, object]]:
    for outcome in client.predict_many(items):
        row: dict[str, object] = {"picture": outcome.item.key}
        if outcome.answer is not None:
            row |= {"labels": list(outcome.answer.labels), "revision": outcome.answer.served_by.revision}
        elif isinstance(outcome.error, HotslotError):
            row |= {"error": outcome.error.reason or outcome.error.code}
        else:
            row |= {"error": str(outcome.error)}
        yield row
