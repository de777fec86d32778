"""`fallbacks.json`: the models that were moved to the CPU, so that a restarted server keeps them there."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from common.durable import read_bounded, write_atomic
from common.json_load import load_json
from inference.server.model.pair import CpuFallbackRow

FILE_NAME = "fallbacks.json"
FALLBACKS_SCHEMA = 1
MAX_FILE_BYTES = 64 << 10


class CpuFallbackFile:
    """All rows of one server, in memory and on disk. Loop thread only.

    A write blocks the loop until it is on disk: it happens once per fallback, and a crash right after it must
    not lose the decision.

    Args:
        path: the file; its folder must exist before the first `put`.
        warn: called with a sentence if the file cannot be read or written; the rows in memory stay valid.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._rows = self._read()

    def get(self, model: str) -> CpuFallbackRow | None:
        """The row of a model; None if it has no fallback."""
        return self._rows.get(model)

    def put(self, row: CpuFallbackRow) -> None:
        """Store a model's fallback; replaces an older one."""
        self._rows[row.model] = row
        self._write()

    def remove(self, model: str) -> None:
        """Remove a model's fallback; does nothing if there is none."""
        if self._rows.pop(model, None) is not None:
            self._write()

    def _read(self) -> dict[str, CpuFallbackRow]:
        try:
            rows = _parse(read_bounded(self._path, MAX_FILE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Starting without it is safe: if memory runs out again, the fallback is taken again.
            self._warn(f"{FILE_NAME} is ignored: {type(error).__name__}")
            return {}
        return {row.model: row for row in rows}

    def _write(self) -> None:
        try:
            if not self._rows:
                self._path.unlink(missing_ok=True)
                return
            rows = [{**asdict(row), "since": row.since.isoformat()} for row in self._rows.values()]
            content = json.dumps({"schema_version": FALLBACKS_SCHEMA, "models": rows}, indent=1).encode() + b"\n"
            write_atomic(self._path, content, mode=0o600)
        except OSError as error:
            self._warn(f"{FILE_NAME} cannot be written: {error.strerror}")


def _parse(content: bytes) -> list[CpuFallbackRow]:
    """The rows of the file.

    Raises:
        ValueError, KeyError, TypeError: not a file that this build writes.
    """
    document = load_json(content)
    if document["schema_version"] != FALLBACKS_SCHEMA:
        raise ValueError("another schema version")
    rows = [CpuFallbackRow(**{**row, "since": datetime.fromisoformat(row["since"])}) for row in document["models"]]
    for row in rows:
        if not all(isinstance(text, str) for text in asdict(row).values() if not isinstance(text, datetime)):
            raise TypeError("a value is not a string")
        if row.since.tzinfo is None:
            raise ValueError("a time without a zone")
    return rows
