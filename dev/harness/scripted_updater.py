"""The real updater with a stand-in for the conversion: `python -m dev.harness.scripted_updater`."""

import sys
from pathlib import Path

from common.bundle import compute_bundle_digest
from dev.harness.revisions import convert_scripted
from tests.scripted_engine import CONVERTER, NAME
from updater.compose import Conversion
from updater.daemon import main


def digest_of_scripted(_folder: Path, source: str, precision: str) -> str:
    """What `convert_scripted` makes of a source."""
    return compute_bundle_digest(source, NAME, CONVERTER, precision)


SCRIPTED = Conversion(convert_scripted, digest_of_scripted)

if __name__ == "__main__":
    sys.exit(main(SCRIPTED))
