"""`hotslot batch`: every row exactly once, over streams that end as they like."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

import pytest

import cli.app
from dev.harness.waiting import eventually
from tests.cli.batch.conftest import results_of, write_table
from tests.cli.batch.stream_server import StreamServer
from tests.cli.conftest import Hotslot

FAST = ("--concurrency", "8")


def run(hotslot: Hotslot, server: StreamServer, *words: str, out: str = "out.jsonl") -> tuple[int, str, str]:
    """Run a batch."""
    ended = hotslot("batch", *words, "--out", out, "--address", server.address)
    return ended.code, ended.out, ended.err


def test_a_folder_of_pictures_and_a_statement(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """A line a picture, with the answers to each statement; the summary counts by revision."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"\x89PNG")
    code, out, _ = run(hotslot, streams, str(folder), "-s", "there is a person", "-s", "it rains")

    assert code == 0
    first, *others = results_of(tmp_path / "out.jsonl")
    assert first == {
        "row": "0.png",
        "image": "0.png",
        "results": [
            {"statement": text, "label": "yes", "scores": {"yes": 0.5, "no": 0.25, "maybe": 0.25}}
            for text in ("there is a person", "it rains")
        ],
        "served_by": {
            "model": "shapes",
            "revision": "v1.0.0",
            "digest": "sha256:" + "0" * 64,
            "device": "cpu",
            "slot": "",
            "node": "",
        },
    }
    assert (len(others), out.splitlines()[0].startswith("3 rows · 3 answered · 3 in ")) == (2, True)
    assert out.splitlines()[1:] == ["  v1.0.0  3", "out.jsonl"]


def test_addresses(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """A line has spans and components, as `hotslot tag --json`."""
    (tmp_path / "in.txt").write_text("浙江省杭州市\n北京市\n", encoding="utf-8")
    code, _, _ = run(hotslot, streams, "in.txt")

    first, second = results_of(tmp_path / "out.jsonl")
    assert (code, first["components"], first["spans"][0]["text"]) == (0, {"prov": "浙江省"}, "浙江省")
    assert (second["row"], second["address"]) == (2, "北京市")


def test_rows_of_drained_streams_are_sent_again(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """Each row has one line, although no stream lived longer than five answers."""
    streams.drain_after = 5
    write_table(tmp_path / "in.jsonl", [f"statement {number}" for number in range(40)])
    code, _, _ = run(hotslot, streams, "in.jsonl", *FAST)

    assert (code, streams.streams >= 8) == (0, True)
    assert [row["row"] for row in results_of(tmp_path / "out.jsonl")] == list(range(1, 41))


def test_a_row_that_breaks_its_streams_fails_alone(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """The rows beside it have their answers."""
    streams.toxic = "toxic"
    write_table(tmp_path / "in.jsonl", [*("good" for _ in range(9)), "toxic", *("good" for _ in range(9))])
    code, _, _ = run(hotslot, streams, "in.jsonl", *FAST)

    found = results_of(tmp_path / "out.jsonl")
    assert (code, len(found)) == (1, 19)
    assert [(row["row"], row["error"]["code"]) for row in found if "error" in row] == [(10, "INTERNAL")]


def test_rows_without_an_answer_are_told_and_tried_again(
    hotslot: Hotslot, streams: StreamServer, tmp_path: Path
) -> None:
    """Wrong input, a missing file, a broken line: exit code 1; with --retry-failed only they are sent."""
    write_table(tmp_path / "in.jsonl", ["good", "blind"])
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"image": "later.png", "statement": "late"}\n{\n')
    code, out, _ = run(hotslot, streams, "in.jsonl")

    reasons = [row["error"]["reason"] for row in results_of(tmp_path / "out.jsonl") if "error" in row]
    assert (code, reasons) == (1, ["IMAGE_UNREADABLE", "FILE_UNREADABLE", "ROW_MALFORMED"])
    assert out.startswith("4 rows · 1 answered · 3 without an answer · ")
    (tmp_path / "later.png").write_bytes(b"\x89PNG")
    code, out, _ = run(hotslot, streams, "in.jsonl", "--retry-failed", "--json")
    assert (code, json.loads(out)["sent"], json.loads(out)["answered"]) == (1, 3, 2)
    assert (streams.answered["good"], streams.answered["late"]) == (1, 1)


def test_a_refusal_that_passes_is_no_failure(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """The row is sent again after the delay that the server names."""
    streams.refusals_left = 3
    write_table(tmp_path / "in.jsonl", ["busy"])

    code, _, _ = run(hotslot, streams, "in.jsonl")
    assert (code, [row["row"] for row in results_of(tmp_path / "out.jsonl")]) == (0, [1])


def test_the_first_rows_then_the_rest(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """With --limit the exit code is about these; without it the others follow, and no row twice."""
    write_table(tmp_path / "in.jsonl", [f"{number}" for number in range(9)])
    code, out, _ = run(hotslot, streams, "in.jsonl", "--limit", "4", "--json")
    assert (code, json.loads(out)["rows"], sorted(streams.answered)) == (0, 4, ["0", "1", "2", "3"])
    code, out, _ = run(hotslot, streams, "in.jsonl", "--json")

    assert (code, json.loads(out)["sent"], set(streams.answered.values())) == (0, 5, {1})
    assert [row["row"] for row in results_of(tmp_path / "out.jsonl")] == list(range(1, 10))


def test_an_interactive_batch_makes_single_calls(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """The server tells priorities by the kind of call."""
    streams.refusals_left = 1
    write_table(tmp_path / "in.jsonl", ["good", "busy", "blind", "good"])
    code, _, _ = run(hotslot, streams, "in.jsonl", "--priority", "interactive", *FAST)

    assert (code, streams.streams, streams.calls) == (1, 0, 5)
    found = results_of(tmp_path / "out.jsonl")
    assert [row.get("error", {}).get("reason", "") for row in found] == ["", "", "IMAGE_UNREADABLE", ""]


def test_an_input_without_rows_is_done(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """Its results are an empty file."""
    (tmp_path / "in.csv").write_text("image,statement\n")
    code, out, _ = run(hotslot, streams, "in.csv")

    assert (code, out.splitlines()[0], (tmp_path / "out.jsonl").read_bytes()) == (0, "0 rows · 0 answered", b"")


def test_a_model_that_is_not_served_ends_the_batch(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """No row is marked as failed."""
    write_table(tmp_path / "in.jsonl", ["nobody"] * 3)
    code, _, err = run(hotslot, streams, "in.jsonl")

    assert (code, "MODEL_UNKNOWN" in err, (tmp_path / "out.jsonl").read_bytes()) == (1, True, b"")


@pytest.mark.parametrize("out", [".", "/dev/null"])
def test_results_go_to_a_regular_file(hotslot: Hotslot, streams: StreamServer, tmp_path: Path, out: str) -> None:
    """Nothing is sent, and no file is left beside it."""
    write_table(tmp_path / "in.jsonl", ["good"])
    code, _, err = run(hotslot, streams, "in.jsonl", out=out)

    assert (code, "is not a regular file" in err, streams.total) == (2, True, 0)
    assert not Path("/dev/null.batch").exists()


def test_a_server_that_stays_away_ends_the_batch(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """After --timeout, with what was answered before kept."""
    write_table(tmp_path / "in.jsonl", ["good"])
    streams.stop()
    code, _, err = run(hotslot, streams, "in.jsonl", "--timeout", "1")

    assert (code, "no server answers" in err, "goes on where it has stopped" in err) == (1, True, True)


def test_an_input_that_changes_meanwhile_is_told(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """The results may be of both contents."""
    path = write_table(tmp_path / "in.jsonl", ["good"] * 3)
    streams.hold = threading.Event()

    def change() -> None:
        eventually(lambda: streams.streams > 0, what="it has begun to read")
        path.write_text('{"image": "one.png", "statement": "else"}\n')
        streams.hold.set()  # type: ignore[union-attr]  # set above

    changer = threading.Thread(target=change)
    changer.start()
    code, _, err = run(hotslot, streams, "in.jsonl")
    changer.join()

    assert (code, "has changed while it was read" in err) == (1, True)


def test_a_folder_without_pictures_is_told(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """Another folder was meant, or it is not mounted; no results are written."""
    (tmp_path / "pictures" / "deeper").mkdir(parents=True)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    code, _, err = run(hotslot, streams, "pictures", "-s", "there is a person")

    assert (code, "no file below pictures ends in .jpg, .jpeg, .png, .webp" in err) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()


def test_two_result_files_are_refused(hotslot: Hotslot, streams: StreamServer, tmp_path: Path) -> None:
    """The last would be taken, and the rows of the first sent once more."""
    write_table(tmp_path / "in.jsonl", ["good"])
    code, _, err = run(hotslot, streams, "in.jsonl", "--out", "first.jsonl")

    assert (code, "--out is given 2 times" in err, streams.total) == (2, True, 0)


@pytest.fixture
def sigterm() -> Iterator[Callable[[int, FrameType | None], None]]:
    """The handler of SIGTERM that a batch finds; it fails the test, where the usual one would end all of them."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        pytest.fail("nothing handled SIGTERM")

    before = signal.signal(signal.SIGTERM, handle)
    yield handle
    signal.signal(signal.SIGTERM, before)


def test_sigterm_while_the_command_line_is_imported(
    hotslot: Hotslot, sigterm: Callable[[int, FrameType | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is that of a batch that was stopped, not the signal's."""

    class Importing(ModuleType):
        @property
        def make_app(self) -> object:
            signal.raise_signal(signal.SIGTERM)
            return cli.app.make_app

    monkeypatch.setitem(sys.modules, "cli.app", Importing("cli.app"))

    assert hotslot("batch", "in.jsonl", "--out", "out.jsonl").code == 130
    assert signal.getsignal(signal.SIGTERM) is sigterm


def test_sigterm_while_rows_are_sent(
    hotslot: Hotslot, streams: StreamServer, tmp_path: Path, sigterm: Callable[[int, FrameType | None], None]
) -> None:
    """The summary says what is left; the same command goes on."""
    write_table(tmp_path / "in.jsonl", [f"statement {number}" for number in range(9)])
    streams.hold_at, streams.hold = 4, threading.Event()

    def stop() -> None:
        eventually(lambda: streams.total >= 4, what="four rows are answered")
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    code, _, err = run(hotslot, streams, "in.jsonl", *FAST)
    stopping.join()
    streams.hold.set()

    assert (code, "goes on where it has stopped" in err) == (130, True)
    assert signal.getsignal(signal.SIGTERM) is sigterm
    assert run(hotslot, streams, "in.jsonl")[0] == 0
    assert len(results_of(tmp_path / "out.jsonl")) == 9


def start_batch(server: StreamServer, folder: Path) -> subprocess.Popen[bytes]:
    """A batch as a process of its own."""
    words = ["batch", "in.jsonl", "--out", "out.jsonl", "--address", server.address, *FAST]
    program = [sys.executable, "-m", "cli.main", *words]
    environment = {"PATH": os.environ["PATH"], "HOTSLOT_CONFIG": "hotslot.toml"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.mark.timeout(180)  # twelve processes
def test_a_batch_killed_ten_times_has_every_row_once(streams: StreamServer, tmp_path: Path) -> None:
    """SIGKILL at any place, then Ctrl-C; what the last run finds is continued, a torn line removed."""
    rows, kills = 2000, 10
    out = tmp_path / "out.jsonl"
    write_table(tmp_path / "in.jsonl", [f"statement {number}" for number in range(rows)])
    numbers = random.Random(7)
    for number in [signal.SIGKILL] * kills + [signal.SIGINT]:
        before, streams.hold_at = streams.streams, streams.total + numbers.randint(1, 100)
        streams.hold = threading.Event()
        process = start_batch(streams, tmp_path)
        eventually(lambda: streams.streams > before, what="the batch sends rows")  # noqa: B023  called here
        eventually(lambda: streams.total >= streams.hold_at, what=f"{streams.hold_at} rows are answered")
        process.send_signal(number)
        code = process.wait(20)
        streams.hold.set()
        assert code == (130 if number is signal.SIGINT else -number), (tmp_path / "log").read_text()
    with out.open("ab") as file:
        file.write(b'{"row": 5, "ima')
    assert start_batch(streams, tmp_path).wait(30) == 0, (tmp_path / "log").read_text()

    assert [row["row"] for row in results_of(out)] == list(range(1, rows + 1))
