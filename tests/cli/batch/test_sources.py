"""What is read of a folder or a file as rows."""

import json
import os
from pathlib import Path

import pytest

from cli.batch.sources import Question, Row, Source, open_source
from cli.problems import CommandFailed, WronglyUsed
from common.engine_files import Task

ASKED = Question(("there is a person",), "")


def table(path: Path, content: bytes, question: Question = ASKED) -> Source:
    """A file with a content."""
    path.write_bytes(content)
    return open_source(path, question)


def said(rows: list[Row]) -> list[tuple[int | str, str, tuple[str, ...]]]:
    """Key, picture, statements."""
    return [(row.key, row.image_name, row.statements) for row in rows]


def test_pictures_of_a_folder_are_rows_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """By suffix, also below folders; a link to a folder is not followed, a broken one is no picture."""
    for name in ("b.PNG", "a.jpg", "notes.txt", "sub/c.webp", "sub.x/d.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.png").mkdir()
    source = open_source(tmp_path, ASKED)

    rows = list(source.rows())
    assert [row.key for row in rows] == ["a.jpg", "b.PNG", "sub.x/d.jpeg", "sub/c.webp"]
    assert (rows[3].image, source.count()) == (tmp_path / "sub/c.webp", 4)


def test_a_name_that_is_not_utf8_is_a_row_too(tmp_path: Path) -> None:
    """Its key is text that leads back to the file."""
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (row,) = open_source(tmp_path, ASKED).rows()

    assert isinstance(row.image, Path)
    assert row.image.read_bytes() == b"x"


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """With a byte order mark, CRLF, quotes, line ends in a value, blank lines, blanks in the header."""
    content = '\ufeffid, image ,statement\r\n7,a.png,"two ""red""\r\ncircles"\r\n\r\n8,b.png,\r\n'.encode()
    source = table(tmp_path / "t.csv", content)

    rows = list(source.rows())
    assert said(rows) == [(1, "a.png", ('two "red"\r\ncircles',)), (2, "b.png", ASKED.statements)]
    assert ([row.id for row in rows], source.count(), rows[0].image) == (["7", "8"], 2, tmp_path / "a.png")


def test_a_record_that_cannot_be_used_is_a_row_with_a_mistake(tmp_path: Path) -> None:
    """The rows after it are not concerned."""
    lines = [b'{"image": "a.png"}', b"{", b"[1]", b'{"image": 3}', b"", b"\xff", b'{"image": "b.png", "statements": 1}']
    lines += [b'{"image": "\\ud800.png"}', b'{"image": "a.png", "statement": "\\ud800"}']
    source = table(tmp_path / "t.jsonl", b"\n".join(lines))

    assert [(row.key, row.mistake) for row in source.rows()] == [
        (1, ""),
        (2, "the line is not JSON"),
        (3, "the line is not a JSON object"),
        (4, "it has no image"),
        (6, "the line is not UTF-8"),
        (7, "its statements are no list of texts"),
        (8, "the line has half of a character"),
        (9, "the line has half of a character"),
    ]
    source = table(tmp_path / "t.csv", b"image,statement\na.png,x,y\nb.png,z\n")
    assert [row.mistake for row in source.rows()] == ["it has 3 values, the header 2", ""]


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    """It is one row with a mistake."""
    source = table(tmp_path / "t.txt", b"x" * (3 << 20) + "\n北京市\n".encode())

    assert [(row.key, row.address, row.mistake) for row in source.rows()] == [
        (1, "", "the line is longer than 1 MiB"),
        (2, "北京市", ""),
    ]


def test_addresses_are_lines_or_a_column(tmp_path: Path) -> None:
    """A byte order mark, CRLF and blank lines are not theirs; the number is that of the line."""
    source = table(tmp_path / "t.txt", "\ufeff北京市\r\n\r\n  浙江省\n".encode(), Question())
    assert [(row.key, row.address) for row in source.rows()] == [(1, "北京市"), (3, "浙江省")]
    assert (source.task, source.count()) == (Task.ADDRESS_TAGGING, 2)

    source = table(tmp_path / "t.tsv", "id\taddress\nx\t北京市\ny\t\n".encode(), Question())
    assert [(row.id, row.address, row.mistake) for row in source.rows()] == [
        ("x", "北京市", ""),
        ("y", "", "it has no address"),
    ]


def test_parquet_has_paths_or_pictures(tmp_path: Path) -> None:
    """A column of paths, of bytes, or of both as the `datasets` library writes it; lists of statements."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"image": {"bytes": b"png", "path": "a.png"}, "statements": ["x", "y"], "id": 7},
        {"image": {"bytes": None, "path": "b.png"}, "statements": None, "id": 8},
        {"image": None, "statements": ["z"], "id": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", ASKED)

    found = list(source.rows())
    assert [(row.key, row.id, row.image, row.statements, row.mistake) for row in found] == [
        (1, "7", b"png", ("x", "y"), ""),
        (2, "8", tmp_path / "b.png", ASKED.statements, ""),
        (3, "", b"", (), "it has no image"),
    ]
    assert source.count() == 3


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything is sent."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)

    with pytest.raises(WronglyUsed, match="extra `parquet`"):
        table(tmp_path / "t.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", b"picture,statement\n", "has no column `image` and none `address`; it has picture, statement"),
        ("t.csv", b"", "it has none"),
        ("t.csv", b"\xff\xfei\0m\0", "is not UTF-8"),
        ("t.xlsx", b"PK", "is of no known kind"),
        ("t.parquet", b"PK", "cannot be read as Parquet"),
    ],
)
def test_an_input_without_rows_to_read_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    """At once, with what is missing."""
    with pytest.raises(CommandFailed) as refused:
        table(tmp_path / name, content)

    assert sentence in str(refused.value)


def test_a_statement_must_come_from_somewhere(tmp_path: Path) -> None:
    """From the table or the command line."""
    for path, content in ((tmp_path / "t.csv", b"image\na.png\n"), (tmp_path, b"")):
        if content:
            path.write_bytes(content)
        with pytest.raises(WronglyUsed, match="--statement"):
            open_source(path, Question())


def test_a_broken_end_of_a_table_is_told_with_its_line(tmp_path: Path) -> None:
    """Rows before it are read."""
    source = table(tmp_path / "t.csv", b'image\na.png\n"b.png\n')
    rows = source.rows()

    assert next(rows).image_name == "a.png"
    with pytest.raises(CommandFailed, match="line 3"):
        next(rows)


def test_the_digest_differs_if_the_rows_differ(tmp_path: Path) -> None:
    """Not if only the file's times do."""
    path = tmp_path / "t.jsonl"
    line = json.dumps({"image": "a.png", "statement": "x"}).encode() + b"\n"
    first = table(path, line * 3).digest()
    os.utime(path, (1, 1))

    assert table(path, line * 3).digest() == first
    assert table(path, line * 4).digest() != first
    assert table(path, (line * 3).replace(b"x", b"y")).digest() != first


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Nobody knows which of the two is meant."""
    with pytest.raises(WronglyUsed, match="has several columns `image`; keep one"):
        table(tmp_path / "t.csv", b"image,image,statement\na.png,b.png,x\n")


def test_a_long_value_of_a_csv_is_read(tmp_path: Path) -> None:
    """As far as a line of JSON may be long; the server says what is too long for the model."""
    long = "x" * 500_000
    (row,) = table(tmp_path / "t.csv", f"image,statement\na.png,{long}\n".encode()).rows()

    assert row.statements == (long,)
