"""The real updater with a stand-in for the conversion, and crash points that are armed while it runs.

A line in the file that `HOTSLOT_CHAOS_ARM` names arms the next life, once: a supervisor that starts the updater again
does not kill it again.
"""

import contextlib
import os
import sys
from pathlib import Path

from dev.harness.scripted_updater import SCRIPTED
from updater.daemon import main
from updater.settings import CRASH_VARIABLE

ARM_VARIABLE = "HOTSLOT_CHAOS_ARM"


def take_arm() -> None:
    """Arm this life with what the file says, and take it away."""
    file = Path(os.environ[ARM_VARIABLE])
    with contextlib.suppress(FileNotFoundError):
        os.environ[CRASH_VARIABLE] = file.read_text(encoding="utf-8").strip()
        file.unlink()


if __name__ == "__main__":
    take_arm()
    sys.exit(main(SCRIPTED))
