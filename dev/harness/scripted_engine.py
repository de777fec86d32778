"""An engine without torch, with predictable answers and injected faults.

It runs in the real runner, so that tests use real processes that start in milliseconds. Answers depend only on the
bundle's salt, the picture's bytes and the statement. A command is a word in a statement: `!crash`, `!slow 0.2`;
`!crash@r2` applies only to a bundle of revision `r2`, or to a device of that name. A picture that begins with `!bad`
is unreadable.

    !crash  the process dies          !hang  the call never returns     !gil S   holds the interpreter S s
    !nan    an answer with NaN         !oom   no memory for this row    !error   an exception
    !slow S  S seconds more           !refuse  refused as wrong input   !exit    the process exits with 1
    !burn S  S seconds of CPU time    !unprepared S  S seconds of preparation
    !garbage  invalid frame           !half  half a frame, then hangs   !lost    the device is lost
    !held   as long as the file exists that the script names; see `holding`
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from common.bundle import Bundle, bundle_folder, compute_bundle_digest, compute_source_digest, hash_file, write_bundle
from common.errors import InputRefused
from dev.harness.scripted_tagging import TaggedItem, tag
from inference.runner.engines.base import (
    AddressItem,
    BundleRefused,
    Item,
    LoadOptions,
    MemoryEstimate,
    PictureFormat,
    PreparedItem,
    Progress,
    RowRange,
    RowResult,
)
from inference.wire import EntailmentScores

NAME = "scripted"
WHERE = "dev.harness.scripted_engine:load_scripted"
ENGINES = {NAME: WHERE}  # for RunnerSpec.extra_engines
THREADS_VARIABLE = "SCRIPTED_THREADS"  # path of a file: receives the number of threads set, one a line
CALLS_VARIABLE = "SCRIPTED_CALLS"  # path of a file: receives a JSON line for each device call
# Path of a file: engines of several processes compute one call at a time, in turn, as on one device.
SHARED_DEVICE_VARIABLE = "SCRIPTED_SHARED_DEVICE"
# Path of a file: the one card of all processes, which has no room beside a bundle whose script says `fills_card`.
CARD_VARIABLE = "SCRIPTED_CARD"
DEVICES_VARIABLE = "SCRIPTED_DEVICES"  # for example "cuda:0,cpu": devices that the runner reports
SCRIPT_NAME = "script.json"
_ENTAILMENT = "visual-entailment"
CONVERTER = "scripted-1"
_COMMAND = re.compile(r"!(\w+)(?:@(\S+))?(?:\s+([\d.]+))?")
_GIB = 1 << 30
CARD_BYTES = 80 * _GIB
CARD_USED_VARIABLE = "SCRIPTED_CARD_USED"  # bytes in use on every card
HELD_PAUSE_SECONDS = 0.005  # between two looks for the file


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error, by which the runner recognises it."""


class AcceleratorError(RuntimeError):
    """Has the name of torch's error, by which the runner recognises it."""


@dataclass(frozen=True, slots=True)
class Script:
    """Content of a bundle's `script.json`."""

    revision: str = ""
    task: str = _ENTAILMENT  # or "token-classification": see scripted_tagging
    salt: str = ""  # determines the answers; the revision if empty
    load_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    prepare_seconds: float = 0.0
    call_seconds: float = 0.0  # of a device call, besides its rows
    row_seconds: float = 0.0
    cpu_row_seconds: float = 0.0  # CPU time, not sleep
    max_call_rows: int = 8
    memory_rows: int = 0  # a call of more rows raises a memory error; 0 for no limit
    overflows_on: str = ""  # statements that contain it are answered with NaN; empty for none
    fail_load: str = ""  # "refused", "oom", "error", "crash", "hang", "gil"
    fail_warm_up: str = ""  # the same
    fail_while: str = ""  # path of a file: both faults apply only while it exists; always if empty
    faulty_devices: str = ""  # prefix of devices to which the faults above and `memory_rows` apply
    fills_card: bool = False  # the card has no room for another bundle beside it; see CARD_VARIABLE
    needs_bytes: int = 0  # memory estimate; 0 for none
    held_by: str = ""  # path of a file: a load, and a row with `!held`, last as long as it exists; see `holding`
    picture_side: int = 0  # pixels; pictures are decoded to this size, as for a real model; 0: they may be any bytes


@dataclass(frozen=True, slots=True)
class ScriptedItem:
    """A prepared item."""

    picture: str  # derived from its bytes
    premise: str
    statements: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Device rows."""
        return len(self.statements)


def expected_scores(salt: str, image: bytes, statement: str, premise: str = "") -> EntailmentScores:
    """Return the answer of a bundle with this salt."""
    return _scores(salt, picture_key(image), premise, statement)


def make_scripted_bundle(state: Path, revision: str, **script: Any) -> Bundle:  # noqa: ANN401  fields of Script
    """Write a sealed bundle for this engine under a state directory; `script` sets fields of Script."""
    text = json.dumps(asdict(Script(revision=revision, **script)))
    staging = state / "bundles" / f".staging-{os.getpid()}-{revision}"
    staging.mkdir(parents=True, exist_ok=True)
    (staging / SCRIPT_NAME).write_text(text, encoding="utf-8")
    files = (hash_file(staging / SCRIPT_NAME),)
    source = compute_source_digest(files)
    bundle = Bundle(
        bundle_digest=compute_bundle_digest(source, NAME, CONVERTER, "float32"),
        source_digest=source,
        revision=revision,
        engine=NAME,
        task=json.loads(text)["task"],
        precision="float32",
        converter=CONVERTER,
        files=files,
        notes=(f"{revision} answers by a script",),
    )
    write_bundle(staging, bundle)
    folder = bundle_folder(state, bundle.bundle_digest)
    if folder.exists():
        shutil.rmtree(staging)
    else:
        staging.rename(folder)
    return bundle


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the loads, and the rows with `!held`, of bundles whose script is `held_by` this path."""
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def load_scripted(folder: Path, bundle: Bundle, options: LoadOptions, progress: Progress) -> "ScriptedEngine":
    """Open a bundle of this engine."""
    script = _read_script(folder)
    _note_threads(options.threads)
    engine = ScriptedEngine(script, bundle, options)
    engine.apply_fault(script.fail_load)
    _wait_while_held(script)
    for step in range(1, 5):
        _pause(script.load_seconds / 4)
        progress("reading", step / 4)
    return engine


class ScriptedEngine:
    """An engine that computes answers from hashes."""

    def __init__(self, script: Script, bundle: Bundle, options: LoadOptions) -> None:
        self.device = options.device or "cpu"
        self.precision = options.precision or "float32"
        self.max_call_rows = script.max_call_rows
        self.pictures = PictureFormat(script.picture_side, options.pictures) if script.picture_side else None
        self.is_faulty = self.device.startswith(script.faulty_devices)
        self._room = _take_room(script) if self.device.startswith("cuda") else None  # until the process ends
        self._script = script
        self._salt = script.salt or bundle.revision
        self._scopes = (None, bundle.revision, self.device)

    def prepare(self, item: Item) -> "ScriptedItem | TaggedItem":
        """Accept any picture that does not begin with "!bad"."""
        _pause(self._script.prepare_seconds)
        if isinstance(item, AddressItem):
            return TaggedItem(item.addresses)
        if item.image.startswith(b"!bad"):
            raise InputRefused("the picture cannot be read", reason="IMAGE_UNREADABLE", field="image.content")
        for number, statement in enumerate(item.statements):
            commands = dict(self._commands(statement))
            _pause(commands.get("unprepared", 0.0))
            if "refuse" in commands:
                raise InputRefused("refused on command", reason="STATEMENT_REFUSED", field=f"statements[{number}]")
        return ScriptedItem(picture_key(item.image), item.premise, item.statements)

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """Answer, and apply the commands in the statements."""
        script = self._script
        rows = sum(part.rows for part in ranges)
        if script.memory_rows and self.is_faulty and rows > script.memory_rows:
            raise OutOfMemoryError("on command")
        began = time.monotonic()
        self._take_time(rows)
        answers = [self._answers(part.item, part.start, part.stop) for part in ranges]
        self._note_call(ranges, time.monotonic() - began)
        return answers

    def _take_time(self, rows: int) -> None:
        script = self._script
        with _shared_device():
            _pause(script.call_seconds + script.row_seconds * rows)
            _burn(script.cpu_row_seconds * rows)

    def _note_call(self, ranges: Sequence[RowRange[PreparedItem]], seconds: float) -> None:
        path = os.environ.get(CALLS_VARIABLE)
        if path and self._script.task == _ENTAILMENT:
            rows = [[cast("ScriptedItem", part.item).picture, part.rows] for part in ranges]
            call = {"revision": self._scopes[1], "ended": time.time(), "seconds": seconds, "rows": rows}
            with Path(path).open("a", encoding="ascii") as file:
                file.write(f"{json.dumps(call)}\n")

    def apply_fault(self, fault: str) -> None:
        """Apply a load fault if the script enables it for this device now."""
        path = self._script.fail_while
        if fault and self.is_faulty and (not path or Path(path).exists()):
            _LOAD_FAULTS[fault]()

    def warm_up(self, progress: Progress) -> None:
        """Take the time of the script."""
        self.apply_fault(self._script.fail_warm_up)
        _pause(self._script.warm_up_seconds)
        progress("warming_up", 1.0)

    def close(self) -> None:
        """Nothing to free."""

    def _answers(self, item: PreparedItem, start: int, stop: int) -> tuple[RowResult, ...]:
        if isinstance(item, TaggedItem):
            return tuple(self._tag(address) for address in item.addresses[start:stop])
        assert isinstance(item, ScriptedItem)
        return tuple(self._answer(item, statement) for statement in item.statements[start:stop])

    def _tag(self, address: str) -> RowResult:
        self._run_faults(address)
        return tag(address)

    def _answer(self, item: ScriptedItem, statement: str) -> EntailmentScores:
        scores = _scores(self._salt, item.picture, item.premise, statement)
        if self._script.overflows_on and self._script.overflows_on in statement:
            scores = EntailmentScores(math.nan, scores.no, scores.maybe)
        if "nan" in dict(self._commands(statement)):
            scores = EntailmentScores(math.nan, scores.no, scores.maybe)
        self._run_faults(statement)
        return scores

    def _run_faults(self, text: str) -> None:
        for name, seconds in self._commands(text):
            if name == "held":
                _wait_while_held(self._script)
            elif name in _FAULTS:
                _FAULTS[name](seconds)

    def _commands(self, statement: str) -> list[tuple[str, float]]:
        if "!" not in statement:
            return []
        found = _COMMAND.finditer(statement)
        return [(match[1], float(match[3] or 0)) for match in found if match[2] in self._scopes]


class ScriptedHardware:
    """Devices from the environment."""

    def devices(self) -> list[tuple[str, str]]:
        """Names and precisions, best first."""
        return [(name, "float32") for name in os.environ.get(DEVICES_VARIABLE, "cpu").split(",")]

    def memory_bytes(self, device: str) -> tuple[int, int]:
        """A card that uses 10 %, or the bytes from the environment."""
        used = int(os.environ.get(CARD_USED_VARIABLE, 8 * _GIB))
        return (used, CARD_BYTES) if device.startswith("cuda") else (0, 0)

    def clear_cache(self) -> None:
        """Nothing is kept."""

    def use_threads(self, threads: int) -> None:
        """Append the number to the file that a test reads."""
        _note_threads(threads)


@contextlib.contextmanager
def _shared_device() -> Iterator[None]:
    """Wait for the device that several processes share; who has waited is next."""
    path = os.environ.get(SHARED_DEVICE_VARIABLE)
    if not path:
        yield
        return
    with Path(path).open("wb") as device:
        with Path(f"{path}.next").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(device, fcntl.LOCK_EX)
        yield


def _take_room(script: Script) -> IO[bytes] | None:
    """Room on the card, if a test has one."""
    path = os.environ.get(CARD_VARIABLE)
    if not path:
        return None
    card = Path(path).open("ab")  # noqa: SIM115  open for as long as the room is taken
    try:
        fcntl.flock(card, fcntl.LOCK_NB | (fcntl.LOCK_EX if script.fills_card else fcntl.LOCK_SH))
    except BlockingIOError:
        raise OutOfMemoryError("the card is full") from None
    return card


def _note_threads(threads: int) -> None:
    path = os.environ.get(THREADS_VARIABLE)
    if path:
        with Path(path).open("a", encoding="ascii") as file:
            file.write(f"{threads}\n")


def estimate_scripted(folder: Path, bundle: Bundle, options: LoadOptions) -> MemoryEstimate | None:
    """Return the script's estimate on the devices to which it applies."""
    script = _read_script(folder)
    if not script.needs_bytes or not options.device.startswith(script.faulty_devices):
        return None
    return MemoryEstimate(weights=script.needs_bytes, working=0)


HARDWARE = ScriptedHardware()
MEMORY_ESTIMATOR = estimate_scripted


def _read_script(folder: Path) -> Script:
    row = json.loads((folder / SCRIPT_NAME).read_text(encoding="utf-8"))
    return Script(**{name.name: row[name.name] for name in fields(Script) if name.name in row})


def picture_key(image: bytes) -> str:
    """How a picture is named in answers and in the list of device calls."""
    return f"{len(image)}:{zlib.crc32(image)}"


def _scores(salt: str, picture: str, premise: str, statement: str) -> EntailmentScores:
    digest = hashlib.sha256(f"{salt}\0{picture}\0{premise}\0{statement}".encode()).digest()
    yes, no, maybe = (1 + byte for byte in digest[:3])
    total = yes + no + maybe
    return EntailmentScores(yes / total, no / total, maybe / total)


def _pause(seconds: float) -> None:
    if seconds:  # even sleep(0) releases the interpreter lock
        time.sleep(seconds)


def _wait_while_held(script: Script) -> None:
    while script.held_by and Path(script.held_by).exists():
        time.sleep(HELD_PAUSE_SECONDS)


def _burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _raise(error: Exception) -> NoReturn:
    raise error


def _hang(_: float = 0) -> None:
    while True:
        time.sleep(3600)


def _hold_interpreter(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # PyDLL, unlike CDLL, holds the interpreter lock during the call


def _die(_: float = 0) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    _hang()


def _send_raw(raw: bytes) -> None:
    data_fd = next(argument for argument in sys.argv if argument.startswith("--data-fd=")).partition("=")[2]
    os.write(int(data_fd), raw)


def _half_frame(_: float) -> None:
    _send_raw((100).to_bytes(4, "big") + b"half")
    _hang()


_FAULTS: dict[str, Callable[[float], object]] = {
    "crash": _die,
    "exit": lambda _: os._exit(1),
    "hang": _hang,
    "gil": _hold_interpreter,
    "oom": lambda _: _raise(OutOfMemoryError("on command")),
    "error": lambda _: _raise(RuntimeError("on command")),
    "lost": lambda _: _raise(AcceleratorError("CUDA error: on command")),
    "slow": time.sleep,
    "burn": _burn,
    "garbage": lambda _: _send_raw(b"\xff" * 64),
    "half": _half_frame,
}

_LOAD_FAULTS: dict[str, Callable[[], object]] = {
    "refused": lambda: _raise(BundleRefused("script.json asks for a refusal")),
    "oom": lambda: _raise(OutOfMemoryError("on command")),
    "error": lambda: _raise(RuntimeError("on command")),
    "crash": _die,
    "hang": _hang,
    "gil": lambda: _hold_interpreter(3600),
}
