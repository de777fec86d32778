"""Which commit a measurement ran on."""

import subprocess
from pathlib import Path

from dev.harness.process import ROOT


def read_commit(*reports: Path) -> str:
    """The short hash of the checkout; `-changed` follows if files other than these reports are not committed."""
    # Relative: ":!/" would have another meaning.
    others = ("--", ".", *(f":(exclude){path.relative_to(ROOT)}" for path in reports))
    changed = _git("status", "--porcelain", "-uno", *others)
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("-changed" if changed else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
