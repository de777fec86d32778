"""The check before the start: which file is in the way, said in one sentence."""

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hotslot_watchdog.launch import PACKAGES, WRONG_ENVIRONMENT, EnvironmentUnusable, check_environment

ROOT = Path(__file__).resolve().parents[2]


def install(folder: Path, files: dict[str, str], owner: str = "hotslot-1.0") -> None:
    """Write files as an installer does, with its record of them; what is there already is replaced."""
    rows = []
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    record = folder / f"{owner}.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("\n".join([*rows, f"{record.parent.name}/RECORD,,"]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with a small hotslot in it, from which alone Python imports."""
    folder = tmp_path / "site-packages"
    packages = {f"{package}/__init__.py": f'"""{package}"""\n' for package in PACKAGES}
    install(folder, {**packages, "inference/wire.py": "LIMIT = 1\n"})
    monkeypatch.setattr(sys, "path", [str(folder)])
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_an_environment_of_its_own_is_used(site: Path) -> None:
    """Every module is found where it was installed."""
    check_environment(site)


@pytest.mark.parametrize("foreign", ["inference/__init__.py", "common.py", "cli/__init__.py"])
def test_a_package_that_comes_first_is_named(site: Path, tmp_path: Path, foreign: str) -> None:
    """For example a folder in PYTHONPATH; its code is not run."""
    file = tmp_path / "first" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("raise SystemExit('it was run')\n")
    sys.path.insert(0, str(tmp_path / "first"))
    with pytest.raises(EnvironmentUnusable, match=re.escape(f"{file} is imported in place of hotslot's own package")):
        check_environment(site)


def test_a_file_that_another_package_replaced_is_named_with_its_owner(site: Path) -> None:
    """The other package was installed after hotslot."""
    install(site, {"inference/__init__.py": "from inference.core import models\n"}, "inference-0.50.0")
    with pytest.raises(EnvironmentUnusable, match=r"__init__\.py is not .* \(inference-0\.50\.0 brings one of"):
        check_environment(site)


def test_a_file_that_hotslot_replaced_does_no_harm(site: Path) -> None:
    """The other package was installed before hotslot; its remaining files beside hotslot's modules are not imported."""
    install(site, {"inference/core/models.py": "raise SystemExit('it was run')\n"}, "inference-0.50.0")
    with (site / "inference-0.50.0.dist-info" / "RECORD").open("a") as record:
        record.write("inference/__init__.py,sha256=other,1\n")
    check_environment(site)


@pytest.mark.parametrize("foreign", ["inference/wire/__init__.py", "inference/wire.abi3.so"])
def test_what_python_prefers_to_a_file_is_named(site: Path, foreign: str) -> None:
    """A folder or a compiled module of the same name is imported first."""
    (site / foreign).parent.mkdir(exist_ok=True)
    (site / foreign).touch()
    with pytest.raises(EnvironmentUnusable, match=re.escape(f"{site / foreign} is imported in place of")):
        check_environment(site)


def test_a_file_that_has_gone_is_named(site: Path) -> None:
    """The other package was removed, and took what the two had in common with it."""
    (site / "inference" / "wire.py").unlink()
    with pytest.raises(EnvironmentUnusable, match=re.escape(f"{site / 'inference' / 'wire.py'} cannot be read")):
        check_environment(site)


def test_another_system_than_linux_is_refused(site: Path) -> None:
    """Everything that is used of Linux is missing there; the sentence says so before the first import fails."""
    with pytest.raises(EnvironmentUnusable, match="runs on Linux only, not on darwin"):
        check_environment(site, platform="darwin")


def test_the_source_tree_is_an_environment_too() -> None:
    """There is no record; only the locations of the packages are checked."""
    check_environment(ROOT)
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(Path(name).name for name in shipped["packages"]) == sorted(PACKAGES)


def test_a_wrong_environment_ends_a_program_with_one_line(tmp_path: Path) -> None:
    """No traceback, and an exit code that says configuration."""
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "__init__.py").touch()
    command = [sys.executable, "-P", "-m", "hotslot_watchdog.launch", "-m", "inference.server.main"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert str(tmp_path / "inference" / "__init__.py") in done.stderr
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (WRONG_ENVIRONMENT, 1, "")


def test_the_program_s_own_arguments_and_folder_are_its_own(tmp_path: Path) -> None:
    """The program gets its arguments, and nothing is imported from the working folder."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise SystemExit('it was run')\n")
    command = [sys.executable, "-P", "-m", "hotslot_watchdog.launch", "-m", "inference.server.main", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert "The gRPC server of hotslot" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
