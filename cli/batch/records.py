"""The records of a file: CSV, JSON lines, Parquet, or an address a line; read one after another."""

import csv
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from cli.problems import CommandFailed, WronglyUsed
from common.json_load import HalfCharacter, load_json

MAX_LINE_BYTES = 1 << 20
_PARQUET_ROWS = 64  # read at once


class Records(Protocol):
    """The records of a file."""

    def columns(self) -> set[str] | None:
        """The names of its columns; None if each record has its own."""
        ...

    def count(self) -> int:
        """How many records there are."""
        ...

    def read(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """Number and values of each record, or why it has none."""
        ...


class _Lines:
    """Lines of a text file that are not blank; the number is that of the line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def count(self) -> int:
        """See `Records`."""
        return sum(1 for _ in self.lines())

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and content of each; None if it is too long."""
        with self._path.open("rb") as file:
            for number in itertools.count(1):
                line, is_whole = _read_line(file)
                if not line:
                    return
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if stripped := line.strip():
                    yield number, stripped if is_whole else None


def _read_line(file: BinaryIO) -> tuple[bytes, bool]:
    """The next line, and whether it was short enough to be read whole."""
    line = rest = file.readline(MAX_LINE_BYTES)
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(MAX_LINE_BYTES)
    return line, line.endswith(b"\n") or len(line) < MAX_LINE_BYTES


class Addresses(_Lines):
    """A text file with an address a line."""

    def columns(self) -> set[str]:
        """See `Records`."""
        return {"address"}

    def read(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """See `Records`."""
        for number, line in self.lines():
            if line is None:
                yield number, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
                continue
            try:
                yield number, {"address": line.decode()}
            except UnicodeDecodeError:
                yield number, "the line is not UTF-8"


class JsonLines(_Lines):
    """A file with a JSON object a line."""

    def columns(self) -> None:
        """See `Records`."""

    def read(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """See `Records`."""
        for number, line in self.lines():
            yield number, _parse_record(line)


def _parse_record(line: bytes | None) -> Mapping[str, Any] | str:
    if line is None:
        return f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        row = load_json(line)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except HalfCharacter:
        return "the line has half of a character"
    except ValueError:
        return "the line is not JSON"
    return row if isinstance(row, dict) else "the line is not a JSON object"


class Csv:
    """A file with a header and comma-separated values (RFC 4180), or with tabs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        csv.field_size_limit(MAX_LINE_BYTES)  # of this process

    def columns(self) -> set[str]:
        """See `Records`."""
        names = next(self._records(), [])
        if twice := sorted({name for name in names if name and names.count(name) > 1}):
            raise WronglyUsed(f"{self._path} has several columns `{twice[0]}`; keep one")
        return set(names)

    def count(self) -> int:
        """See `Records`."""
        return max(0, sum(1 for _ in self._records()) - 1)

    def read(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """See `Records`."""
        records = self._records()
        names = next(records, [])
        for number, values in enumerate(records, start=1):
            if len(values) != len(names):
                yield number, f"it has {len(values)} values, the header {len(names)}"
            else:
                yield number, dict(zip(names, values, strict=True))

    def _records(self) -> Iterator[list[str]]:
        """The header with its names trimmed, then the records that are not blank."""
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self._delimiter, strict=True)
            is_header = True
            try:
                for values in reader:
                    if values:
                        yield [name.strip() for name in values] if is_header else values
                        is_header = False
            except UnicodeDecodeError as error:
                raise CommandFailed(f"{self._path} is not UTF-8 after line {reader.line_num}") from error
            except csv.Error as error:
                raise CommandFailed(f"{self._path}, line {reader.line_num}: {error}") from error


class Parquet:
    """A Parquet file, read with pyarrow."""

    def __init__(self, path: Path) -> None:
        try:
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            message = "Parquet files need pyarrow: install the wheel with its extra `parquet` (docs/how-to/install.md)"
            raise WronglyUsed(message) from error
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        self._path = path

    def columns(self) -> set[str]:
        """See `Records`."""
        return set(self._file.schema_arrow.names)

    def count(self) -> int:
        """See `Records`."""
        return int(self._file.metadata.num_rows)

    def read(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """See `Records`."""
        wanted = [
            name for name in ("id", "image", "statement", "statements", "premise", "address") if name in self.columns()
        ]
        numbers = itertools.count(1)
        try:
            for batch in self._file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for record, number in zip(batch.to_pylist(), numbers, strict=False):
                    yield number, record
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{self._path} cannot be read further: {str(error).splitlines()[0]}") from error


KINDS: Final[Mapping[str, Callable[[Path], Records]]] = {
    ".csv": Csv,
    ".tsv": Csv,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".parquet": Parquet,
    ".txt": Addresses,
}
