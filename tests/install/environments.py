"""Fresh environments, made without a network: hotslot's wheel, small wheels of other packages, and our dependencies."""

import base64
import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".tools" / "uv" / "bin" / "uv"  # dev/scripts/bootstrap puts it there
LIMIT_SECONDS = 60.0


def build_distribution(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source archive into a folder, as `make dist` does; returns both in this order."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT_SECONDS,
    )
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def build_small_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """A wheel of another package, with these files in it."""
    info = f"{name}-{version}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in contents.items()]
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Environment:
    """A virtual environment that sees the dependencies which the tests run with, and no hotslot but its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.hotslot = folder / "bin" / "hotslot"
        _uv("venv", "--python", sys.executable, str(folder))
        (self.site_packages,) = (folder / "lib").glob("python3.*/site-packages")
        # A line of a .pth file adds a folder, and does not read that folder's own .pth files: what is installed there
        # is importable, the source tree that is installed there as editable is not.
        (self.site_packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    def install(self, *wheels: Path) -> None:
        """Install wheels one after the other."""
        for wheel in wheels:
            _uv("pip", "install", "--no-deps", "--python", str(self.python), str(wheel))

    def uninstall(self, name: str) -> None:
        """Remove what a package installed."""
        _uv("pip", "uninstall", "--python", str(self.python), name)

    def run(self, *command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder, without the environment variables of the tests."""
        return subprocess.run(
            list(map(str, command)),
            cwd=folder or self.folder,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    def variables(self) -> dict[str, str]:
        """The variables of its processes."""
        ours = ("HOTSLOT_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**kept, "PATH": f"{self.folder / 'bin'}:{kept.get('PATH', '')}", "COLUMNS": "200"}


def _uv(*arguments: str) -> None:
    command = [str(UV), *arguments, "--no-config", "--offline", "--quiet"]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_SECONDS)
