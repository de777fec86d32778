"""Which commit a measurement ran on."""

import subprocess
from pathlib import Path

from dev.harness.process import ROOT

LIMIT_SECONDS = 30.0


def read_commit(*reports: Path) -> str:
    """The short hash of the checkout; `-changed` follows if files other than these reports are not committed."""
    # Relative: ":!/" would have another meaning.
    others = ("--", ".", *(f":(exclude){path.relative_to(ROOT)}" for path in reports))
    changed = _git("status", "--porcelain", "-uno", *others)
    return (_git("rev-parse", "--short=12", "HEAD") or "unknown") + ("-changed" if changed else "")


def _git(*words: str) -> str:
    """What git prints; empty where there is no git."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except OSError:
        return ""
    return done.stdout.strip()
