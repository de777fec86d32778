"""A server with streams, and the results of a batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.batch.stream_server import StreamServer


@pytest.fixture
def streams() -> Iterator[StreamServer]:
    """A server with streams."""
    server = StreamServer()
    yield server
    server.stop()


def results_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file by their keys."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: str(row["row"]).zfill(9))


def write_table(path: Path, statements: list[str]) -> Path:
    """A JSON-lines table of one picture and these statements about it, with the picture beside it."""
    (path.parent / "one.png").write_bytes(b"\x89PNG")
    path.write_text("".join(json.dumps({"image": "one.png", "statement": one}) + "\n" for one in statements))
    return path
