"""NVIDIA's client of the Open Inference Protocol, in an environment of its own: it needs an older protobuf."""

import os
import subprocess
import sys
from pathlib import Path

from dev.harness.process import ROOT

PLACE = ROOT / ".tools" / "tritonclient"
REQUIREMENTS = ROOT / "dev" / "requirements" / "tritonclient.txt"
_MADE_FROM = PLACE / ".made-from"


def install_triton_client() -> None:
    """Install the pinned client, once."""
    wanted = REQUIREMENTS.read_text(encoding="ascii")
    if _MADE_FROM.exists() and _MADE_FROM.read_text(encoding="ascii") == wanted:
        return
    uv = [str(ROOT / ".tools" / "uv" / "bin" / "uv"), "pip", "install", "--quiet", "--no-config", "--python"]
    command = [*uv, sys.executable, "--target", str(PLACE), "--require-hashes", "--requirement", str(REQUIREMENTS)]
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true"}  # trust whom the machine trusts
    subprocess.run(command, check=True, timeout=300, env=environment)
    _MADE_FROM.write_text(wanted, encoding="ascii")


def run_triton_program(program: Path, *arguments: str) -> str:
    """Run a Python program that sees that client and nothing of hotslot; returns its output.

    Raises:
        AssertionError: it has failed.
    """
    install_triton_client()
    done = subprocess.run(
        [sys.executable, "-S", str(program), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PLACE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
