"""The updater with a stub for the conversion: `python -m dev.harness.scripted_updater`.

The file that HOTSLOT_TEST_ARM names contains the crash point of the next process. It is removed when it is read, so
that a restarted updater does not crash again.
"""

import os
import sys
from pathlib import Path

from common.bundle import compute_bundle_digest
from dev.harness.revisions import convert_scripted
from dev.harness.scripted_engine import CONVERTER, NAME
from updater.compose import Conversion
from updater.daemon import main
from updater.settings import CRASH_VARIABLE


def digest_of_scripted(_folder: Path, source: str, precision: str) -> str:
    """The digest of the bundle that `convert_scripted` makes of a source."""
    return compute_bundle_digest(source, NAME, CONVERTER, precision)


ARM_VARIABLE = "HOTSLOT_TEST_ARM"
SCRIPTED = Conversion(convert_scripted, digest_of_scripted)


def take_armed() -> None:
    """Take the armed crash point, if there is one."""
    file = Path(os.environ.get(ARM_VARIABLE, os.devnull))
    if file.is_file():
        os.environ[CRASH_VARIABLE] = file.read_text(encoding="utf-8").strip()
        file.unlink()


if __name__ == "__main__":
    take_armed()
    sys.exit(main(SCRIPTED))
