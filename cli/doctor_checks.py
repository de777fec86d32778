"""The checks of `hotslot doctor`: each looks at one thing and says what is wrong and what to do. Nothing is changed."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cli import doctor_facts as facts
from cli.config_check import list_doubts, list_mistakes
from cli.output import seconds, size
from cli.settings import Settings
from common.bundle import BundleBroken, Committed, bundle_folder, read_committed
from common.cgroup import Memory, count_oom_kills, count_usable_cpus, read_memory
from common.golden_set import GoldenBroken, read_folder
from common.paths import CONTROL_SOCKET, HEARTBEAT, SUPERVISOR_SOCKET, UPDATES_SOCKET, run_folder
from common.reload import FileUnusable
from common.settings import SettingsInvalid, format_mistake
from common.tls import find_ending, find_invalidity, load_certificate

HEARTBEAT_SECONDS = 30.0  # the updater touches its file every two
MIN_OPEN_FILES = 1024
FILES_BAD = 0.80  # used share
DISK_DOUBTFUL, DISK_BAD = 0.10, 0.02  # free shares
MEMORY_BAD = 0.90  # used share
CLOCK_SECONDS = 120.0  # by which files may lie in the future
_LOAD_FACTOR = 1.3  # memory of a load relative to its bundle


class Level(StrEnum):
    """How a check ended."""

    GOOD = "good"
    DOUBTFUL = "look"  # it works, and is probably not meant so
    BAD = "wrong"
    UNKNOWN = "–"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    area: str
    level: Level
    found: str  # what is so
    action: str = ""  # what to do; empty if nothing


def check_settings(error: SettingsInvalid) -> Iterator[Finding]:
    """The mistakes of a settings file that cannot be used."""
    for mistake in error.mistakes:
        yield Finding("settings", Level.BAD, format_mistake(mistake), "`hotslot config check` says what is allowed")


def check_machine(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Everything that can be seen without asking a process."""
    yield from _check_values(settings, now)
    yield from _check_disk(settings)
    yield from _check_certificate(settings, now)
    yield from _check_golden(settings)
    yield from _check_clock(settings, now)
    yield from _check_limits(settings)
    yield from _check_memory(settings)


def check_processes(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Which programs run, and whether their sockets answer."""
    folder = run_folder(settings.state_dir)
    programs = facts.find_programs(folder)
    if not programs:
        yield Finding("processes", Level.BAD, "nothing runs on this state folder", "`hotslot serve` starts it")
        return
    for name in facts.PROGRAMS:
        program = programs.get(name)
        if program is None:
            advice = "its log says why it ended; supervisord starts it again" if name != "stack" else ""
            level = Level.DOUBTFUL if name == "stack" else Level.BAD
            yield Finding("processes", level, f"the {name} does not run", advice)
        else:
            yield Finding("processes", Level.GOOD, f"the {name} runs as process {program.pid}")
    sockets = {"server": (CONTROL_SOCKET,), "updater": (UPDATES_SOCKET,), "stack": (SUPERVISOR_SOCKET,)}
    for name in programs:
        for socket in sockets[name]:
            why = facts.answers(folder / socket)
            advice = f"the {name} hangs or runs on another state folder: restart it" if why else ""
            yield Finding("sockets", Level.BAD if why else Level.GOOD, f"{socket} {why or 'answers'}", advice)
    if "updater" in programs:
        yield from _check_heartbeat(folder / HEARTBEAT, now)


def _check_values(settings: Settings, now: datetime) -> Iterator[Finding]:
    mistakes = list_mistakes(settings)
    yield from check_settings(SettingsInvalid(mistakes))
    if mistakes:
        return
    doubts = list(list_doubts(settings, now))
    in_use = [doubt for doubt in doubts if doubt.startswith("on this machine")]  # usually by hotslot itself
    for doubt in doubts:
        if doubt not in in_use:
            yield Finding("settings", Level.DOUBTFUL, doubt)
    if len(doubts) == len(in_use):
        models = ", ".join(model.name for model in settings.models)
        yield Finding("settings", Level.GOOD, f"no mistakes; serves {models}")


def _check_disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.state_dir
    if not folder.is_dir():
        yield Finding("disk", Level.BAD, f"{folder} does not exist", "`hotslot serve` makes it")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("disk", Level.BAD, f"{folder} cannot be written by this user", "give it to the user of hotslot")
    usage = shutil.disk_usage(folder)
    share = usage.free / usage.total if usage.total else 1.0
    found = f"{size(usage.free)} of {size(usage.total)} free at {folder}"
    needed = settings.updater.reserve_bytes
    if share < DISK_BAD:
        yield Finding("disk", Level.BAD, found, "free room: the journal cannot be written on a full disk")
    elif share < DISK_DOUBTFUL or usage.free < needed:
        yield Finding("disk", Level.DOUBTFUL, found, f"free room: updates leave {size(needed)} free")
    else:
        yield Finding("disk", Level.GOOD, found)


def _check_certificate(settings: Settings, now: datetime) -> Iterator[Finding]:
    files = settings.tls.files
    if files is None:
        yield Finding("certificate", Level.GOOD, "none is configured")
        return
    try:
        certificate = load_certificate(files)
    except FileUnusable as error:
        yield Finding("certificate", Level.BAD, str(error), "replace the files; they are read again without a restart")
        return
    renew = "renew it; the files are read again without a restart"
    invalid, ending = find_invalidity(certificate, now), find_ending(certificate, now)
    if invalid:
        yield Finding("certificate", Level.BAD, invalid, renew)
    elif ending:
        yield Finding("certificate", Level.DOUBTFUL, ending, renew)
    else:
        left = seconds((certificate.not_after - now).total_seconds())
        yield Finding("certificate", Level.GOOD, f"valid for {left}, for {', '.join(certificate.names)}")


def _check_golden(settings: Settings) -> Iterator[Finding]:
    tasks = {model.name: model.task for model in settings.models}
    for name, section in settings.updater.models.items():
        if section.golden is None:
            advice = "`hotslot golden record FOLDER` makes one; until then each update is HELD"
            yield Finding("golden set", Level.DOUBTFUL, f"{name} has none", advice)
            continue
        try:
            found = read_folder(section.golden, tasks[name])
        except (GoldenBroken, OSError) as error:
            advice = "`hotslot golden show` names what is wrong"
            yield Finding("golden set", Level.BAD, f"{name}: {_sentence(error)}", advice)
        else:
            yield Finding("golden set", Level.GOOD, f"{name} has {len(found.golden.items)} items")


def _check_clock(settings: Settings, now: datetime) -> Iterator[Finding]:
    ahead = _newest(settings.state_dir) - now.timestamp()
    if ahead > CLOCK_SECONDS:
        found = f"the state folder has files from {seconds(ahead)} in the future"
        yield Finding("clock", Level.BAD, found, "the clock has gone back: set it right")
    elif facts.is_clock_synchronised() is False:
        found = f"{now:%Y-%m-%d %H:%M:%S} UTC; the kernel does not know of a time server"
        yield Finding("clock", Level.DOUBTFUL, found, "run chrony or systemd-timesyncd on the host")
    else:
        yield Finding("clock", Level.GOOD, f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _check_limits(settings: Settings) -> Iterator[Finding]:
    program = facts.find_programs(run_folder(settings.state_dir)).get("server")
    pid = 0 if program is None else program.pid
    files, used = facts.read_open_files_limit(pid), facts.count_open_files(pid)
    found = f"{f'{used} of ' if used else ''}{files or 'any number of'} open files, {count_usable_cpus()} CPUs"
    if files and used / files > FILES_BAD:
        action = "raise `ulimit -n`, or close idle connections sooner: `server.max_connection_idle_seconds`"
        yield Finding("limits", Level.BAD, found, action)
    elif 0 < files < MIN_OPEN_FILES:
        yield Finding("limits", Level.DOUBTFUL, found, f"raise `ulimit -n` to {MIN_OPEN_FILES} or more")
    else:
        yield Finding("limits", Level.GOOD, found)


def _check_memory(settings: Settings) -> Iterator[Finding]:
    """The memory plan: during an update, the candidate is loaded beside what serves."""
    memory = read_memory()
    if memory is None or not memory.total:
        yield Finding("memory", Level.UNKNOWN, "it cannot be read")
        return
    try:
        committed = read_committed(settings.state_dir)
        sizes = {name: _bundle_bytes(settings.state_dir, one) for name, one in committed.items()}
    except (BundleBroken, OSError) as error:
        yield Finding("bundles", Level.BAD, _sentence(error), "`hotslot state verify` reads all of them")
        return
    runs = "server" in facts.find_programs(run_folder(settings.state_dir))
    largest = max(sizes, key=lambda name: sizes[name], default="")
    needed = int(_LOAD_FACTOR * (sizes.get(largest, 0) + (0 if runs else sum(sizes.values()))))
    plan = f"; an update of {largest} loads about {size(needed)} beside what serves" if largest and runs else ""
    yield judge_memory(memory, needed, count_oom_kills(), plan)


def judge_memory(memory: Memory, needed: int, oom_kills: int, plan: str = "") -> Finding:
    """What is found of the memory.

    Args:
        memory: as the machine or the container has it.
        needed: bytes of the largest load.
        oom_kills: processes of this container that the kernel has ended because memory ran out.
        plan: further words.
    """
    found = f"{size(memory.free)} of {size(memory.total)} free{plan}"
    advice = "raise the limit of the container, or end what else runs"
    if memory.used / memory.total > MEMORY_BAD:
        return Finding("memory", Level.BAD, found, advice)
    if oom_kills:
        ended = f"; it ran out, and the kernel has ended {oom_kills} processes since the start"
        return Finding("memory", Level.DOUBTFUL, found + ended, advice)
    if needed > memory.free:
        return Finding("memory", Level.DOUBTFUL, found, "with less, an update is HELD: raise the limit")
    return Finding("memory", Level.GOOD, found)


def _check_heartbeat(path: Path, now: datetime) -> Iterator[Finding]:
    try:
        age = now.timestamp() - path.stat().st_mtime
    except OSError:
        yield Finding("processes", Level.DOUBTFUL, "the updater has not begun to work", "wait; its log has the reason")
        return
    if age > HEARTBEAT_SECONDS:
        found = f"the updater has made no progress for {seconds(age)}"
        yield Finding("processes", Level.BAD, found, "the watchdog restarts it; if it does not, restart the stack")


def _bundle_bytes(state_dir: Path, committed: Committed) -> int:
    folder = bundle_folder(state_dir, committed.bundle_digest)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _newest(folder: Path) -> float:
    try:
        return max((entry.stat().st_mtime for entry in os.scandir(folder)), default=0.0)
    except OSError:
        return 0.0


def _sentence(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
