"""The results file: exactly one whole line a row, whatever ended the runs before."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.batch.results import Counts, ResultsFile, encode_line
from cli.problems import CommandFailed, WronglyUsed

TERMS = {"version": 1, "statements": ["x"], "digest": "sha256:0"}


def line(row: int | str, *, failed: bool = False) -> bytes:
    """A result."""
    outcome: dict[str, Any] = {"error": {"reason": "NO"}} if failed else {"served_by": {"revision": "v1"}}
    return encode_line({"row": row, **outcome})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results of rows 1 and 2; the second has no answer."""
    with ResultsFile(tmp_path / "out.jsonl", TERMS) as results:
        results.append(line(1) + line(2, failed=True))
    return tmp_path / "out.jsonl"


def keys_of(path: Path) -> list[int | str]:
    """The keys that the next run finds."""
    with ResultsFile(path, TERMS) as results:
        return list(results.read_keys(Counts()))


@pytest.mark.parametrize("torn", [b'{"row": 3, "ser', b"x", b"\0" * 100, b"y" * 200_000])
def test_a_torn_last_line_is_removed(out: Path, torn: bytes) -> None:
    """However long it is."""
    whole = out.read_bytes()
    with out.open("ab") as file:
        file.write(torn)

    assert (keys_of(out), out.read_bytes()) == ([1, 2], whole)


def test_a_file_of_one_torn_line_is_begun_again(out: Path) -> None:
    """Nothing of it is kept."""
    out.write_bytes(b'{"row"')

    assert (keys_of(out), out.read_bytes()) == ([], b"")


def test_lines_are_counted_by_revision_and_reason(out: Path) -> None:
    """Those of earlier runs too."""
    counts = Counts()
    with ResultsFile(out, TERMS) as results:
        assert list(results.read_keys(counts)) == [1, 2]

    assert (dict(counts.by_revision), dict(counts.by_reason)) == ({"v1": 1}, {"NO": 1})


def test_rows_without_an_answer_are_removed_as_a_whole(out: Path) -> None:
    """The file is replaced, and what is appended then goes to the new one."""
    with ResultsFile(out, TERMS) as results:
        assert results.drop_failed() == 1
        results.append(line(2))

    assert out.read_bytes() == line(1) + line(2)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.batch"]


def test_two_batches_on_one_output_are_one(out: Path) -> None:
    """The second is refused while the first one writes."""
    with ResultsFile(out, TERMS), pytest.raises(CommandFailed, match="another `hotslot batch`"):
        ResultsFile(out, TERMS)
    assert keys_of(out) == [1, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"digest": "sha256:1"}, "the input has changed"),
        ({"statements": ["y"]}, r"another statements \(\['x'\], now \['y'\]\)"),
    ],
)
def test_a_batch_goes_on_only_with_the_same_question(out: Path, change: dict[str, Any], sentence: str) -> None:
    """Otherwise the file would have answers to two."""
    with pytest.raises(WronglyUsed, match=sentence):
        ResultsFile(out, {**TERMS, **change})


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Also one with a line that no batch writes."""
    other = tmp_path / "report.jsonl"
    other.write_text('{"a": 1}\n')
    with pytest.raises(WronglyUsed, match="not the output of a batch"):
        ResultsFile(other, TERMS)

    assert other.read_text() == '{"a": 1}\n'
    other.unlink()
    with ResultsFile(other, TERMS) as results:
        results.append(line(1) + b"[]\n" + line(2))
    with pytest.raises(CommandFailed, match="line 2 of"):
        keys_of(other)


def test_terms_without_results_bind_nobody(tmp_path: Path) -> None:
    """A batch that wrote nothing may be asked differently."""
    with ResultsFile(tmp_path / "out.jsonl", TERMS):
        pass
    (tmp_path / "out.jsonl.batch").write_text('{"torn')
    with ResultsFile(tmp_path / "out.jsonl", {**TERMS, "statements": ["y"]}):
        pass

    assert json.loads((tmp_path / "out.jsonl.batch").read_text())["statements"] == ["y"]


def test_a_full_disk_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    """Nothing is silently lost."""
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    results = ResultsFile(tmp_path / "out.jsonl", TERMS)

    with pytest.raises(OSError, match="No space left on device") as refused, results:
        results.append(line(1))
    assert refused.value.filename == str(tmp_path / "out.jsonl")


def test_half_a_character_in_a_name_is_escaped() -> None:
    """All others are readable."""
    assert encode_line({"row": "线"}) == '{"row": "线"}\n'.encode()
    assert json.loads(encode_line({"row": "\udcff"})) == {"row": "\udcff"}
