"""Other projects' clients of the Open Inference Protocol, each in an environment of its own, with older packages."""

import os
import subprocess
import sys
from pathlib import Path

from dev.harness.process import ROOT

TRITON, KSERVE = "tritonclient", "kserve"


def find_client(name: str) -> Path:
    """Where a client is installed, or will be."""
    return ROOT / ".tools" / name


def install_client(name: str) -> None:
    """Install the client that dev/requirements/NAME.txt pins, once."""
    requirements = ROOT / "dev" / "requirements" / f"{name}.txt"
    place = find_client(name)
    made_from, wanted = place / ".made-from", requirements.read_text(encoding="ascii")
    if made_from.exists() and made_from.read_text(encoding="ascii") == wanted:
        return
    uv = [str(ROOT / ".tools" / "uv" / "bin" / "uv"), "pip", "install", "--quiet", "--no-config", "--python"]
    command = [*uv, sys.executable, "--target", str(place), "--require-hashes", "--requirement", str(requirements)]
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true"}  # trust whom the machine trusts
    subprocess.run(command, check=True, timeout=600, env=environment)
    made_from.write_text(wanted, encoding="ascii")


def run_program(client: str, program: Path, *arguments: str) -> str:
    """Run a Python program that sees that client and nothing of hotslot; returns its output.

    Raises:
        AssertionError: it has failed.
    """
    install_client(client)
    done = subprocess.run(
        [sys.executable, "-S", str(program), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(find_client(client))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    install_client(sys.argv[1])
