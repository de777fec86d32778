"""pyproject.toml names what the shipped code imports, all of it and nothing else, and says what each is for."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from hotslot_watchdog.launch import PACKAGES
from tests.install.environments import ROOT

USERS_EXTRAS = ("console",)
IMPORTED_BY_OTHERS = {"python-multipart"}  # Starlette imports it when a form comes, and declares it as an extra
# The distribution that brings a module, where their names differ.
BRINGS = {
    "PIL": "pillow",
    "google.api": "googleapis-common-protos",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
}


def imported_modules(file: Path) -> set[str]:
    """Every module that a file imports, the names in `from … import` among them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def distribution_of(module: str) -> str:
    """The distribution that brings a module."""
    parts = module.split(".")
    known = [".".join(parts[:length]) for length in (2, 1)]
    return next((BRINGS[name] for name in known if name in BRINGS), parts[0]).replace("_", "-")


def declared() -> dict[str, str]:
    """Each dependency, and each of an extra for users, with the comment of its line."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = [name for extra in USERS_EXTRAS for name in project["optional-dependencies"][extra]]
    named = [*project["dependencies"], *extras]
    lines = {requirement: line for line in text.splitlines() for requirement in named if f'"{requirement}",' in line}
    return {re.split("[<>=]", name)[0]: line.partition("# ")[2] for name, line in lines.items()}


def test_every_import_is_a_dependency_and_every_dependency_is_imported() -> None:
    """A dependency of a dependency may go; one that is not imported costs for nothing."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    files += (ROOT / "protos").rglob("*.py")
    modules = {name for file in files for name in imported_modules(file)}
    foreign = {name for name in modules if name.split(".")[0] not in {*PACKAGES, *sys.stdlib_module_names}}
    assert {distribution_of(name) for name in foreign} | IMPORTED_BY_OTHERS == set(declared())


def test_every_dependency_says_what_it_is_for() -> None:
    """On its own line."""
    assert [name for name, reason in declared().items() if not reason] == []


def test_another_system_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    """`make serve` on a laptop with another system: one sentence, not two gigabytes."""
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "dev" / "scripts" / "bootstrap")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == "hotslot: hotslot runs on Linux only, not on Darwin: use a container or a Linux host\n"
    assert (done.returncode, done.stdout) == (1, "")
