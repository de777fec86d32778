"""`hotslot state …`: back up, restore and verify the state folder."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli.clients import connection, updates_endpoint
from cli.output import BAD, DIM, GOOD, err, out, print_text, size, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import StateDir, read_settings
from cli.state_folder import state_folder
from common.durable import AlreadyRunning, lock_instance
from common.exit_codes import ExitCode
from common.paths import SERVER_LOCK, UPDATER_LOCK, keep_owner, run_folder
from common.settings import settings_path
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.core.rules import ReleasePolicy
from updater.settings import JOURNAL_NAME
from updater.store.backup import (
    MANIFEST,
    BackupBroken,
    check_backup,
    check_state,
    copy_journal,
    is_before_first_update,
    save,
    verify,
)
from updater.store.restore import restore, restore_from_witness

app = typer.Typer(no_args_is_help=True)
_SECONDS = 60.0
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup.")]


@app.command(
    "backup",
    epilog="Example:  hotslot state backup /backups/hotslot\n\nNext:  `hotslot state verify FOLDER` reads it all.",
)
def backup(folder: Folder, *, state_dir: StateDir = None) -> None:
    """Back up the state folder into a new folder; hotslot may run.

    It contains the journal, the committed pointer, and the bundles and sources
    of the committed and the previous revisions.
    """
    state = state_folder(state_dir)
    if folder.exists() and not folder.is_dir():
        raise WronglyUsed(f"{folder} is no folder; name a new one for the backup")
    if folder.resolve().is_relative_to(state.resolve()):
        raise WronglyUsed(f"{folder} is inside the state folder and would be lost with it; name one outside of it")
    with _explaining(), err.status(text(f"backing up {state}")):
        check_state(state)  # before the backup's folder is made
        total = save(state, folder, _journal_copier(state))
    print_text(("backed up ", GOOD), f"{state} to {folder}: {size(total)}")


@app.command(
    "verify",
    epilog="Example:  hotslot state verify\n\n"
    "Next:  `hotslot state restore` replaces a damaged bundle; without a backup move its folder away, and import the "
    "same revision again.",
)
def verify_(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="A backup. Default: the state folder.")
    ] = None,
    *,
    state_dir: StateDir = None,
) -> None:
    """Check the journal, the pointer, and every byte of the bundles that they name; hotslot may run."""
    place = folder or state_folder(state_dir)
    with _explaining(), tempfile.TemporaryDirectory() as scratch, err.status(text(f"reading {place}")):
        journal: Path | None = place / JOURNAL_NAME
        if folder is not None:
            check_backup(folder)
        elif is_before_first_update(place):
            journal = None
        else:
            journal = Path(scratch) / JOURNAL_NAME
            _journal_copier(place)(journal)
        found = verify(place, journal)
    _show(found.models)
    if journal is None:
        print_text(("no journal: no updater has run on it yet", DIM))
    for problem in found.problems:
        out.print(text((problem, BAD)))
    if found.problems:
        raise typer.Exit(ExitCode.FAILED)
    print_text(("good: ", GOOD), f"{found.bundles} bundles, {size(found.size)} read")


@app.command(
    "restore",
    epilog="Example:  hotslot state restore /backups/hotslot\n\nNext:  `hotslot serve`, then `hotslot updates status`.",
)
def restore_(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Folder of the backup.")] = None,
    *,
    from_witness: Annotated[
        bool,
        typer.Option(
            "--from-witness",
            help="Without a backup: a new journal with the minimal versions and the quarantine of journal.witness.",
            show_default=False,
        ),
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Restore a state folder, also on another host; hotslot must be stopped.

    For --from-witness only the updater must be stopped: the server goes on.
    Minimal versions and quarantine that the folder's witness knows are kept,
    even if the backup is older: instead of a revision that was taken back since,
    the one before it is restored. The files that are replaced stay beside the new
    ones with the ending .replaced.
    """
    if (folder is None) != from_witness:
        raise WronglyUsed("name either the folder of a backup, or --from-witness")
    state = state_folder(state_dir, may_be_new=folder is not None)
    if folder is None and not state.is_dir():
        raise CommandFailed(f"there is no state folder {state}, so there is no witness: restore a backup instead")
    if folder is not None and not (folder / MANIFEST).is_file():
        raise CommandFailed(f"{folder} has no {MANIFEST}: it is no backup, or an incomplete one")
    stopped, restoring = _stopped(state, with_server=folder is not None), err.status(text(f"restoring {state}"))
    with _explaining(), keep_owner(state), stopped, restoring:
        records = restore_from_witness(state) if folder is None else restore(folder, state, _policies())
    _show(records)
    print_text(("restored ", GOOD), f"{state}; start hotslot, and look at `hotslot updates status`")
    if from_witness:
        print_text(("updates are paused: `hotslot updates resume` when that is what you expect", DIM))


def _policies() -> dict[str, ReleasePolicy]:
    """By the settings, which are no part of a backup; empty without settings."""
    if not settings_path().is_file():
        return {}
    from updater.compose import build_policy  # noqa: PLC0415  slow: the whole updater

    return {name: build_policy(section) for name, section in read_settings().updater.models.items()}


def _show(records: tuple[ModelRecord, ...]) -> None:
    for record in records:
        committed = "nothing" if record.committed is None else record.committed.revision
        least = record.min_version or "none"
        print_text(
            f"{record.model}: {committed} committed, minimal version {least}, {len(record.quarantine)} in quarantine"
        )


def _journal_copier(state: Path) -> Callable[[Path], None]:
    """Copies the journal: the updater does it while it runs, since it holds the file."""

    def copy(target: Path) -> None:
        lock = run_folder(state) / UPDATER_LOCK
        was_used = lock.exists()
        try:
            with lock_instance(lock) if was_used else contextlib.nullcontext():
                copy_journal(state, target)
        except AlreadyRunning:
            with connection(updates_endpoint(state), _SECONDS) as channel:
                answer = UpdatesServiceStub(channel).CopyJournal(pb.CopyJournalRequest(), timeout=_SECONDS)
            shutil.move(run_folder(state) / answer.file, target)  # also to another file system
        except (BackupBroken, JournalUnusable, OSError):
            if was_used or not lock.exists():  # else what was read changed meanwhile
                raise
        if not was_used and lock.exists():  # an updater has started meanwhile
            copy(target)

    return copy


def _run_folder(state: Path) -> Path:
    folder = run_folder(state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _stopped(state: Path, *, with_server: bool) -> Iterator[None]:
    """Hold the lock of the updater, and of the server, so that they do not run."""
    folder = _run_folder(state)
    what = "hotslot runs" if with_server else "the updater runs"
    try:
        with lock_instance(folder / UPDATER_LOCK), contextlib.ExitStack() as more:
            if with_server:
                more.enter_context(lock_instance(folder / SERVER_LOCK))
            yield
    except AlreadyRunning as error:
        raise CommandFailed(f"{what} on {state}: stop it first") from error


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except (BackupBroken, JournalUnusable) as error:
        advice = getattr(error, "advice", "")
        raise CommandFailed(f"{error}{'; ' if advice else ''}{advice}") from error
