"""`fallbacks.json`: which models the server keeps off which device, so that a new server does not find it out again."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from common.durable import read_bounded, write_atomic

FILE_NAME = "fallbacks.json"
FALLBACKS_SCHEMA = 1
MAX_FILE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Fallback:
    """One model that was moved because memory ran out."""

    model: str
    device: str  # that ran out
    fallback_device: str
    bundle_digest: str  # that met it
    since: datetime  # with its zone
    reason: str  # "OUT_OF_MEMORY", "DOES_NOT_FIT"


class FallbackFile:
    """All rows of one server, in memory and on disk. Loop thread only.

    A write waits for the disk on the loop: it happens once a fallback, and what was decided must not be
    forgotten by a crash that comes a moment later.

    Args:
        path: the file; its folder must exist before the first `put`.
        complain: told in one sentence when the file could not be read or written; the rows in memory hold.
    """

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        self._path = path
        self._complain = complain
        self._rows = self._read()

    def of(self, model: str) -> Fallback | None:
        """The row of a model."""
        return self._rows.get(model)

    def put(self, row: Fallback) -> None:
        """Remember a model's fallback, in place of an older one."""
        self._rows[row.model] = row
        self._write()

    def drop(self, model: str) -> None:
        """Forget a model's fallback; a second time is harmless."""
        if self._rows.pop(model, None) is not None:
            self._write()

    def _read(self) -> dict[str, Fallback]:
        try:
            rows = _parse(read_bounded(self._path, MAX_FILE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            # The worst that follows is that memory runs out once more, which is met in the same way.
            self._complain(f"{FILE_NAME} is ignored: {type(error).__name__}")
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
            self._complain(f"{FILE_NAME} cannot be written: {error.strerror}")


def _parse(content: bytes) -> list[Fallback]:
    """The rows of the file.

    Raises:
        ValueError, KeyError, TypeError: it is not what this build writes.
    """
    document = json.loads(content)
    if document["schema_version"] != FALLBACKS_SCHEMA:
        raise ValueError("another schema version")
    rows = [Fallback(**{**row, "since": datetime.fromisoformat(row["since"])}) for row in document["models"]]
    for row in rows:
        if not all(isinstance(text, str) for text in asdict(row).values() if not isinstance(text, datetime)):
            raise TypeError("a value is no text")
        if row.since.tzinfo is None:
            raise ValueError("a time without a zone")
    return rows
