"""What is in the wheel and in the source archive, and what their metadata says."""

import email
import re
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

from hotslot_watchdog.launch import PACKAGES
from tests.install.environments import ROOT

KINDS = {".py", ".pyi", ".proto", ".typed", ".html", ".css", ".js", ".svg", ".txt", ".json", ".md", ".cpp"}


def read_wheel(wheel: Path) -> tuple[set[str], Message]:
    """Its files, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return set(names), email.message_from_bytes(archive.read(metadata))


def test_the_wheel_holds_the_packages_and_supervisor_conf_and_nothing_else(wheel: Path) -> None:
    """No tests, no tools of developers, no examples; every module and contract of the packages."""
    names, _ = read_wheel(wheel)
    code = {name for name in names if ".dist-info/" not in name}
    expected = {
        file.relative_to(folder).as_posix()
        for folder in (ROOT, ROOT / "protos")
        for package in PACKAGES
        for file in (folder / package).rglob("*")
        if file.suffix in KINDS
    }
    assert code == expected | {"hotslot_watchdog/supervisor.conf"}
    assert code >= {"inference/runner/engines/kernels.cpp"}  # compiled where it runs
    assert {name.rpartition("/")[2] for name in names - code} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }


def test_nothing_in_the_wheel_fails_on_command(wheel: Path) -> None:
    """Fault injection, stubs and simulators are only in the source tree."""
    words = re.compile(r"inject|falsif|faulty|misdeliver|scripted|simulat|stand_?in|fake|mock")
    assert sorted(name for name in read_wheel(wheel)[0] if words.search(name)) == []


def test_the_source_archive_holds_what_builds_and_tests_it(distribution: tuple[Path, Path]) -> None:
    """From it the wheel is built again, the demo is served and the tests run."""
    with tarfile.open(distribution[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "Makefile",
        "README.md",
        "deploy/run-stack",
        "dev/requirements/ci.txt",
        "dev/scripts/bootstrap",
        "examples/shapes/v1.0.0/pytorch_model.bin",
        "hotslot.toml",
        "pyproject.toml",
        "supervisor.conf",
        "tests/install/test_content.py",
    } <= names
    assert [name for name in names if "__pycache__" in name or name.startswith((".venv", ".tools", "state/"))] == []


def test_the_metadata_says_licence_system_and_python(wheel: Path) -> None:
    """What an installer and an index show."""
    _, metadata = read_wheel(wheel)
    classifiers = metadata.get_all("Classifier", [])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert [row for row in classifiers if row.startswith("Operating System")] == ["Operating System :: POSIX :: Linux"]
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert str(metadata.get_payload()).startswith("# hotslot")
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_version_stands_once() -> None:
    """pyproject.toml has it; programs ask for the installed one."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = re.compile(rf"""__version__|["']{re.escape(version)}["']""")
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert [file for file in files if said.search(file.read_text(encoding="utf-8"))] == []


def test_make_dist_builds_what_is_tested_here() -> None:
    """The same builder, on the same settings."""
    assert "\t@$(bin)/python -m hatchling build\n" in (ROOT / "Makefile").read_text()
