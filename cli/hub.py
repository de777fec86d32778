"""`hotslot hub …`: publish revisions in a folder hub, list them, serve them; examine a hub. Works without a server."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli import hub_doctor, hub_serve
from cli.clients import hub_folder, only_model_for
from cli.model_folder import check_model_folder
from cli.output import BAD, DIM, GOOD, err, out, print_text, short, size, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import read_settings
from common.bundle import BundleFile, compute_source_digest
from common.durable import exchange_folders, open_regular, sync_folder, write_atomic
from common.settings import settings_path
from common.source import (
    MANIFEST_NAME,
    ConversionRefused,
    ManifestBroken,
    check_names,
    encode_manifest,
    is_revision_name,
    read_manifest,
)
from common.toml_text import shorten
from common.versions import sort_newest_first
from hubserver.protocol import BRANCHES

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedRevision:
    """The result of `publish`."""

    folder: Path
    files: tuple[BundleFile, ...]
    is_new: bool  # False: the same revision was published already

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def publish(source: Path, hub: Path, model: str, revision: str) -> PublishedRevision:
    """Copy a folder into a hub and publish it by one rename; publishing the same again changes nothing.

    A branch, "master" or "main", gets the new content in the place of the old one.

    Args:
        source: folder of a model; hidden files are left out.
        hub: the folder hub; created if it is missing.
        model: name of the model.
        revision: name of the revision, for example "v1.2.0".

    Raises:
        CommandFailed: the name is not allowed, the folder has files that cannot be published, or the revision is
            published with other files.
        OSError: a file cannot be read or written; nothing was published.
    """
    if not is_revision_name(revision):
        raise WronglyUsed(f"{shorten(revision, 60)!r} cannot name a revision; use letters, digits and . _ + -")
    names = _names_in(source)
    target = hub / model / revision
    target.parent.mkdir(parents=True, exist_ok=True)
    with _open_staging(target.parent) as staging:
        files = tuple(_copy(source, staging, name) for name in names)
        write_atomic(staging / MANIFEST_NAME, encode_manifest(files))
        if target.exists() and not (revision in BRANCHES and _has_other_files(target, files)):
            return PublishedRevision(target, _same(target, files), is_new=False)
        for folder in sorted({(staging / name).parent for name in names} | {staging}, reverse=True):
            sync_folder(folder)
        staging.chmod(0o755)
        _put_in_place(staging, target)
    sync_folder(target.parent)
    return PublishedRevision(target, files, is_new=True)


def _names_in(source: Path) -> list[str]:
    """The relative names of all files of a folder that are not hidden."""
    names = []
    for place, folders, found in os.walk(source, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*found, *(folder for folder in folders if (Path(place) / folder).is_symlink())):
            path = Path(place) / name
            if name.startswith(".") or path == source / MANIFEST_NAME:
                continue
            if path.is_symlink() or not path.is_file():
                raise CommandFailed(f"{path} is not a regular file; publish a copy made with `cp -rL`")
            names.append(path.relative_to(source).as_posix())
    if not names:
        raise CommandFailed(f"{source} has no files")
    try:
        check_names(names)
    except ManifestBroken as error:
        raise CommandFailed(f"{source} cannot be published: {error}") from error
    return sorted(names)


def _copy(source: Path, staging: Path, name: str) -> BundleFile:
    """Copy and hash one file, and flush the copy to disk."""
    path = staging / name
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed, size = hashlib.sha256(), 0
    with open_regular(source / name) as reader, path.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            hashed.update(chunk)
            size += len(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return BundleFile(name, size, hashed.hexdigest())


def _put_in_place(staging: Path, target: Path) -> None:
    """Publish the staged files. The previous content of a branch is left in the staging folder, or beside it."""
    if target.exists() and not exchange_folders(staging, target):
        old = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=target.parent))
        with _lock_folder(old, wait=True):
            target.rename(old / "content")
            staging.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    elif not target.exists():
        staging.rename(target)


def _has_other_files(target: Path, files: tuple[BundleFile, ...]) -> bool:
    try:
        return read_manifest(target) != tuple(sorted(files, key=lambda file: file.name))
    except (OSError, ManifestBroken):
        return False  # it is no revision


def _same(target: Path, files: tuple[BundleFile, ...]) -> tuple[BundleFile, ...]:
    try:
        there = read_manifest(target)
    except (OSError, ManifestBroken) as error:
        raise CommandFailed(f"{target} exists and is not a revision: {error}; move it away") from error
    if there != tuple(sorted(files, key=lambda file: file.name)):
        raise CommandFailed(f"{target.name} has other files already; a revision never changes, so use a new name")
    return there


_STAGING_PREFIX = ".adding-"


@contextlib.contextmanager
def _open_staging(parent: Path) -> Iterator[Path]:
    """A hidden folder beside the target; it is deleted afterwards unless it was renamed.

    It is locked as long as this process lives. What a killed process has left is not, and is deleted first.
    """
    with contextlib.ExitStack() as stack:
        with _lock_folder(parent, wait=True):
            for path in parent.glob(f"{_STAGING_PREFIX}*"):
                _delete_abandoned(path)
            staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
            stack.enter_context(_lock_folder(staging, wait=True))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _delete_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError), _lock_folder(path, wait=False):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock_folder(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process.

    Raises:
        OSError: another process holds it, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error


app = typer.Typer(no_args_is_help=True)
app.command(epilog=hub_serve.EXAMPLE)(hub_serve.serve)
app.command(epilog=hub_doctor.EXAMPLE)(hub_doctor.doctor)

Hub = Annotated[
    Path | None,
    typer.Option("--hub", metavar="DIR", help="The folder hub. Default: from hotslot.toml.", show_default=False),
]


@app.command(
    epilog="Example:  hotslot hub add examples/shapes/v1.1.0 v1.1.0\n\n"
    "Next:  `hotslot updates status` follows the update that starts."
)
def add(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of a model, as downloaded or trained.", callback=check_model_folder),
    ],
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Name of the revision, for example v1.2.0.")],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Default: the only model in hotslot.toml with the task of DIR.",
            show_default=False,
        ),
    ] = "",
    hub: Hub = None,
) -> None:
    """Publish a model folder as a revision of a folder hub.

    The files are copied and hashed. Clients see the whole revision or none of
    it; a published revision never changes, except the branches master and main.
    """
    name = model or _choose_model(source)
    with err.status(text(f"copying {source}")):
        done = publish(source, hub_folder(hub, name), name, revision)
    if not done.is_new:
        print_text(f"{name} {revision} is published already; nothing to do")
        return
    print_text(("published ", GOOD), f"{name} {revision}: {len(done.files)} files, {size(done.size)}")
    print_text(("the updater takes it at its next poll; `hotslot updates status` follows it", DIM))


@app.command(
    "list",
    epilog="Example:  hotslot hub list\n\nNext:  `hotslot updates update REVISION` takes one of them.",
)
def list_(*, hub: Hub = None) -> None:
    """List the revisions in a folder hub."""
    folder = hub_folder(hub)
    if folder.exists() and not folder.is_dir():
        raise WronglyUsed(f"{folder} is not a folder; name a hub's folder with --hub")
    if not folder.is_dir():
        raise CommandFailed(f"{folder} does not exist; publish with `hotslot hub add DIR REVISION`, or mount it")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("model", "revision", "files", "size", "listing"):
        table.add_column(heading, overflow="fold")
    for path in _revisions(folder):
        try:
            files = read_manifest(path)
        except FileNotFoundError:
            continue
        except (OSError, ManifestBroken) as error:
            table.add_row(text(path.parent.name), text(path.name), "", "", text((str(error), BAD)))
            continue
        total = size(sum(file.size for file in files))
        table.add_row(
            *map(text, (path.parent.name, path.name, str(len(files)), total, short(compute_source_digest(files))))
        )
    if table.row_count:
        out.print(table)
    else:
        print_text(f"{folder} has no revision yet; publish one with `hotslot hub add DIR REVISION`")


def _revisions(hub: Path) -> list[Path]:
    """The folders of all revisions, by model, newest version first."""
    found: list[Path] = []
    for model in sorted(path for path in hub.iterdir() if path.is_dir()):
        names = sort_newest_first([path.name for path in model.iterdir() if is_revision_name(path.name)])
        found += [model / name for name in names]
    return found


def _choose_model(source: Path) -> str:
    """The only model in the settings or, of several, the only one with the task of a folder.

    Raises:
        WronglyUsed: there is none, or several.
    """
    names = [model.name for model in read_settings().models] if settings_path().is_file() else []
    if len(names) == 1:
        return names[0]
    try:
        return only_model_for(source)
    except ConversionRefused as error:
        raise WronglyUsed(f"choose a model with --model ({', '.join(names)}); {source}: {error}") from error
