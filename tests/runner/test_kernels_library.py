"""A build of compiled kernels leaves a whole library or nothing, and its failure one event."""

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from inference.runner.engines import build_command, kernels, kernels_library
from inference.runner.engines.build_command import run_command
from inference.runner.engines.kernels import get_kernels, load_kernels, name_kernels
from tests.runner.kernel_builds import load_into, needs_kernels

END_SECONDS = 10.0


pytestmark = pytest.mark.usefixtures("kernels_unloaded")


@pytest.fixture
def folder(built_kernels: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built_kernels, tmp_path / "kernels"))


def list_left(folder: Path) -> list[str]:
    """What a build has left, but the lock and the memory of a failure."""
    return [path.name for path in folder.glob("*") if path.name != ".lock" and path.suffix != ".failed"]


def write_compiler(path: Path, script: str) -> str:
    """Write a compiler that is a shell script; returns its path."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o700)
    return str(path)


FULL_DISK = "echo '/usr/bin/ld: final link failed: No space left on device' >&2; exit 1"
GARBAGE = "head -c 100000 /dev/urandom >&2; head -c 1000 /dev/urandom > $0.out; exit 3"
NOTHING = "exit 0"
ENDLESS = "exec cat /dev/zero >&2"
NO_COMPILER = "there is no C++ compiler"
# Each with a word of the event's reason.
SCRIPTS = {"No space left": FULL_DISK, "status 3": GARBAGE, "cannot open shared": NOTHING, "status 153": ENDLESS}


def fail_to_build(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the build of a folder fail."""
    if case == NO_COMPILER:
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    elif case == "-not-a-flag":
        monkeypatch.setattr(kernels_library, "_FLAGS", ("-not-a-flag",))
    elif case == "took more than":
        monkeypatch.setattr(build_command, "BUILD_SECONDS", 1e-4)
    elif case == "status 1":
        monkeypatch.setattr(kernels_library, "MAX_ERROR", 0.0)
    elif case == "Read-only file system":
        folder.mkdir()
        failing = OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
        monkeypatch.setattr(tempfile, "mkdtemp", lambda *_arguments: raise_error(failing))
    elif case == "File exists":
        folder.write_text("a file", encoding="utf-8")
    else:
        compiler = write_compiler(folder.parent / "c++", SCRIPTS[case])
        monkeypatch.setattr(shutil, "which", lambda name: compiler if name == "c++" else None)


def raise_error(error: Exception) -> str:
    """As a file system that refuses."""
    raise error


@needs_kernels
@pytest.mark.parametrize(
    "reason",
    [
        "there is no C++ compiler",
        "-not-a-flag",
        "took more than",
        "status 1",
        "Read-only file system",
        "File exists",
        *SCRIPTS,
    ],
)
def test_torch_computes_without_kernels(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event has the reason without a path; no part of a failed build is left; torch is named as what computes."""
    folder = tmp_path / "kernels"
    fail_to_build(reason, folder, monkeypatch)

    [(name, fields)] = load_into(folder)

    assert (get_kernels(), name_kernels()) == (None, "none")
    assert reason in fields["reason"]
    assert len(fields["reason"]) < 400
    assert fields["reason"].isprintable()
    assert str(tmp_path) not in fields["reason"]
    assert (name, fields["level"]) == ("kernels_unused", "info" if reason == NO_COMPILER else "warning")
    assert list_left(folder) == []


@needs_kernels
@pytest.mark.parametrize("damage", ["damaged", "cut", "writable"])
def test_a_library_that_is_not_as_built_is_built_again(damage: str, folder: Path) -> None:
    """A crash of the machine, or another user, does not leave a folder without kernels for ever."""
    (library,) = folder.glob("*.so")
    content = library.read_bytes()
    library.chmod(0o722 if damage == "writable" else 0o700)
    if damage != "writable":
        library.write_bytes(content[:4096] if damage == "cut" else content[:-1] + b"?")

    events = load_into(folder)

    assert get_kernels() is not None
    assert (library.read_bytes(), library.stat().st_mode & 0o777) == (content, 0o500)
    assert [name for name, _ in events] == ["kernels_removed", "kernels_compiled"]


@needs_kernels
def test_a_library_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process of the folder needs no compiler."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_arguments, **_named: pytest.fail("compiled again"))

    assert load_into(folder) == []
    assert get_kernels() is not None


@needs_kernels
def test_a_failed_build_is_tried_again_by_another_compiler_or_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each load would wait for it; but a compiler that has changed may succeed, and a disk does not stay full."""
    folder, calls = tmp_path / "kernels", tmp_path / "calls"
    compiler = write_compiler(tmp_path / "c++", f"echo >> {calls}; exit 1")
    monkeypatch.setattr(shutil, "which", lambda name: compiler if name == "c++" else None)
    counts = []
    for changed, failed_ago in ((1, 0.0), (1, 0.0), (2, 0.0), (2, kernels_library.FAILURE_SECONDS + 1)):
        os.utime(compiler, (changed, changed))
        for memory in folder.glob("*.failed"):
            os.utime(memory, (memory.stat().st_mtime - failed_ago,) * 2)
        load_into(folder)
        counts.append(len(calls.read_text(encoding="utf-8").splitlines()))

    assert counts == [1, 1, 2, 3]


@needs_kernels
def test_the_next_compiler_is_tried_after_a_failed_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may lack what the source needs."""
    works = next(path for name in ("g++", "c++", "clang++") if (path := shutil.which(name)))
    monkeypatch.setattr(shutil, "which", {"c++": "/bin/false", "clang++": works}.get)

    assert [name for name, _ in load_into(tmp_path / "kernels")] == ["kernels_compiled"]


@needs_kernels
def test_a_folder_that_others_could_write_is_closed_and_emptied(folder: Path) -> None:
    """A mounted volume's folders may become writable for its group; its libraries are then not trusted."""
    (folder / "kernels-of-another.so").touch()
    folder.chmod(0o2770)

    events = load_into(folder)

    assert [name for name, _ in events] == ["kernels_compiled"]
    assert folder.stat().st_mode & 0o22 == 0
    assert len(list_left(folder)) == 1


@needs_kernels
@pytest.mark.parametrize("is_built", [True, False])
def test_a_start_removes_what_killed_builds_left(
    is_built: bool,  # noqa: FBT001
    folder: Path,
) -> None:
    """Their folders, parts of libraries, libraries of other sources and a second one of this source: one file stays."""
    (library,) = folder.glob("*.so")
    (folder / ".build-a").mkdir()
    (folder / ".build-a" / "kernels.so").touch()
    for name in (".kernels-a.so.b.tmp", "kernels-older-source.so", f"{library.stem[:-1]}~.so"):
        (folder / name).touch()
    if not is_built:
        library.unlink()

    load_into(folder)

    assert name_kernels() != "none"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", library.name]


@needs_kernels
def test_a_start_leaves_the_build_of_another_process_alone(folder: Path) -> None:
    """Which holds the folder's lock."""
    (folder / ".build-a").mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        load_into(folder)

    assert (folder / ".build-a").exists()


@needs_kernels
def test_a_build_that_another_process_does_not_end_is_not_waited_for_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile progress is reported, or the load would be killed."""
    monkeypatch.setattr(kernels_library, "_LOCK_STEP_SECONDS", 0.0)
    monkeypatch.setattr(kernels_library, "_LOCK_SECONDS", 0.0)
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        [(name, fields)] = load_into(folder)

    assert (name, fields["reason"]) == ("kernels_unused", "another process has compiled them for too long")


@needs_kernels
def test_a_library_of_another_processor_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its instructions could end the process; a state folder moves with its volume."""
    (library,) = folder.glob("*.so")
    others = dict.fromkeys(kernels.INSTRUCTIONS, ("-mavx2", "-mfma", "-mbmi2"))
    monkeypatch.setattr(kernels, "INSTRUCTIONS", others)

    assert [name for name, _ in load_into(folder)] == ["kernels_compiled"]
    assert [path.name == library.name for path in folder.glob("*.so")] == [False]


@needs_kernels
def test_a_build_reports_progress(tmp_path: Path) -> None:
    """A load without progress is killed."""
    shares: list[float] = []
    load_kernels(tmp_path / "kernels", progress=shares.append)

    assert len(shares) > 2
    assert all(0 <= share < 0.5 for share in shares)


def has_ended(process: int) -> bool:
    """Whether the process of a descriptor, which is closed, ends within a while."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    ended = poll.poll(1000 * END_SECONDS)
    os.close(process)
    return len(ended) == 1


def start_endless(pipe: Path, program: str) -> int:
    """Run a program that starts a compiler whose own child does not end; returns a descriptor of that child."""
    os.mkfifo(pipe)
    script = f"sleep 600 & echo $! > {pipe}; wait"
    with subprocess.Popen([sys.executable, "-c", program, script]) as process:
        child = os.pidfd_open(int(pipe.read_text(encoding="utf-8")))
        process.send_signal(signal.SIGUSR1)
    return child


RUN = "import sys; from inference.runner.engines import build_command as b; "
CALL = "b.run_command(['/bin/sh', '-c', sys.argv[1]], b'', {}, lambda share: None)"


@pytest.mark.parametrize(
    "program",
    [RUN + CALL, RUN + "import signal; signal.signal(signal.SIGUSR1, lambda *_: setattr(b, '_x', 1 / 0)); " + CALL],
    ids=["killed", "interrupted"],
)
def test_of_a_compiler_nothing_is_left_after_its_runner(program: str, tmp_path: Path) -> None:
    """The runner ends by a signal, or the load by an error, while a process that the compiler has started computes."""
    child = start_endless(tmp_path / "pipe", program)

    assert has_ended(child)


@pytest.mark.parametrize("script", ["sleep 60 & echo $! > {pid}; wait", "sleep 60 & echo $! > {pid}"])
def test_a_command_leaves_no_process(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not end is killed with its children; of one that ends, children are killed."""
    monkeypatch.setattr(build_command, "BUILD_SECONDS", 0.5)
    pid = tmp_path / "pid"
    with contextlib.suppress(subprocess.TimeoutExpired):
        run_command(["/bin/sh", "-c", script.format(pid=pid)], b"", {}, lambda _share: None)

    try:
        child = os.pidfd_open(int(pid.read_text(encoding="utf-8")))
    except ProcessLookupError:
        return
    assert has_ended(child)
