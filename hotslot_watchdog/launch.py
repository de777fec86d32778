"""Starts a program of hotslot after checking that Python imports hotslot's own modules.

hotslot's packages have common names (`inference`, `common`, `cli` …). Another distribution in the same environment may
bring packages of the same names, and then hides hotslot's, or has replaced some of their files. That is checked before
anything but the standard library is imported: a wrong environment ends with one sentence, not with a traceback.

    python -P -m hotslot_watchdog.launch -m MODULE [ARGUMENT ...]     runs MODULE as `python -m MODULE` does
    hotslot [ARGUMENT ...]                                            runs the command line
"""

import base64
import hashlib
import importlib
import importlib.util
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("cli", "common", "console", "hotslot", "hotslot_watchdog", "hubserver", "inference", "updater")
WRONG_ENVIRONMENT = 78  # EX_CONFIG of sysexits.h; `common.errors` may not be imported before the check

_FOLDER = Path(__file__).parent.parent.resolve()  # site-packages, or the source tree; an installer may link files
_STACK = "hotslot_watchdog.stack"  # lets the signals come again
_ADVICE = "install hotslot into an environment of its own"


class EnvironmentUnusable(Exception):
    """Python would not import hotslot's own modules here, or hotslot does not run on this system."""


def run_command_line() -> None:
    """Check the environment, then run the command `hotslot`."""
    _check_or_exit()
    importlib.import_module("cli.main").run()


def main() -> None:
    """Check the environment, then run the module that the command line names."""
    if sys.argv[1:2] != ["-m"] or len(sys.argv) < 3:  # noqa: PLR2004  -m MODULE
        sys.stderr.write("usage: python -P -m hotslot_watchdog.launch -m MODULE [ARGUMENT ...]\n")
        sys.exit(2)
    module = sys.argv[2]
    if module == _STACK and os.getpid() == 1:
        # The kernel drops what the first process of a container does not handle yet; held, it comes with the handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    _check_or_exit()
    sys.argv[:3] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def check_environment(folder: Path = _FOLDER, platform: str = sys.platform) -> None:
    """Return if every module of hotslot would be imported from `folder`, as it was installed.

    Raises:
        EnvironmentUnusable: in one sentence, which file is in the way and what to do.
    """
    if platform != "linux":
        raise EnvironmentUnusable(f"hotslot runs on Linux only, not on {platform}: use a container or a Linux host")
    for package in PACKAGES:
        _check_package(package, folder)
    for record in sorted(folder.glob("hotslot-*.dist-info/RECORD"))[:1]:  # none in a source tree
        for name, digest in _recorded_modules(record):
            _check_module(folder, name, digest)


def _use_utf8() -> None:
    """Start again in UTF-8 mode unless paths are UTF-8 already: in other locales some paths cannot be opened."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  itself


def _check_or_exit() -> None:
    _use_utf8()
    try:
        check_environment()
    except EnvironmentUnusable as error:
        sys.stderr.write(f"hotslot: {error}\n")
        sys.exit(WRONG_ENVIRONMENT)


def _check_package(package: str, folder: Path) -> None:
    """Check the folder that Python would import a package from, without running the package's code."""
    ours = {folder / package, folder / "protos" / package}  # generated code has a folder of its own in the source tree
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # something has put a module without a spec under this name
        spec = None
    if spec is None:
        raise EnvironmentUnusable(f"{folder / package} cannot be imported: {_ADVICE}")
    places = list(spec.submodule_search_locations or ())
    if not any(Path(place).resolve() in ours for place in places):
        found = spec.origin if spec.has_location else (places or [package])[0]
        raise EnvironmentUnusable(f"{found} is imported in place of hotslot's own package `{package}`: {_ADVICE}")


def _recorded_modules(record: Path) -> Iterator[tuple[str, str]]:
    """Every module that the installer wrote, with its digest in the form of that file."""
    for line in record.read_text(encoding="utf-8").splitlines():
        name, algorithm_and_digest, _size = line.rsplit(",", 2)
        algorithm, _, digest = algorithm_and_digest.partition("=")
        if name.endswith(".py") and name.partition("/")[0] in PACKAGES and algorithm == "sha256":
            yield name, digest


def _check_module(folder: Path, name: str, digest: str) -> None:
    file = folder / name
    is_package = file.name == "__init__.py"
    parent = file.parent.parent if is_package else file.parent
    try:
        content = file.read_bytes()
    except OSError:
        raise EnvironmentUnusable(f"hotslot's own file {file} cannot be read: {_ADVICE}") from None
    if base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode() != digest:
        owner = _other_owner(name, folder)
        raise EnvironmentUnusable(f"{file} is not hotslot's own file any more{owner}: {_ADVICE}")
    # A folder or a compiled module of the same name goes before a file: asked as Python itself asks.
    spec = PathFinder.find_spec(file.parent.name if is_package else file.stem, [str(parent)])
    if spec is None or spec.origin is None or Path(spec.origin) != file:
        found = None if spec is None else spec.origin
        raise EnvironmentUnusable(f"{found} is imported in place of hotslot's own file {file}: {_ADVICE}")


def _other_owner(name: str, folder: Path) -> str:
    """The other distribution here that lists this file as its own, for the error's sentence; empty if none does."""
    for record in sorted(folder.glob("*.dist-info/RECORD")):
        with record.open(encoding="utf-8", errors="replace") as lines:
            installed = record.parent.name.removesuffix(".dist-info")
            if not installed.startswith("hotslot-") and any(line.startswith(f"{name},") for line in lines):
                return f" ({installed} brings one of the same name)"
    return ""


if __name__ == "__main__":
    main()
