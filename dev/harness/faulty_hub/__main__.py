"""A folder hub over HTTP with fault injection; docs/hub.md lists the faults.

python -m dev.harness.faulty_hub state/hub --fault "revisions status=429 retry-after=30 times=3"
"""

import argparse
import sys
from pathlib import Path

from cli.hub_serve import serve_until_stopped
from cli.problems import CommandFailed
from common import logs
from common.address import parse_address
from dev.harness.faulty_hub.faults import FaultPlan, FaultUnknown, parse_faults
from dev.harness.faulty_hub.hook import FaultHook
from hubserver.server import HubServerOptions


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.harness.faulty_hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder that `hotslot hub add` fills")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8090, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT", help="WHERE KIND; may be repeated")
    parser.add_argument("--allow-faults", action="store_true", help="let clients arm faults at /_faults")
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is no folder")
    try:
        plan = FaultPlan(parse_faults(given.fault))
    except FaultUnknown as error:
        parser.error(f"--fault: {error}")
    try:
        options = HubServerOptions(parse_address(given.host, given.port))
        with logs.configure("hub", "info"):
            serve_until_stopped(given.folder, options, FaultHook(plan, allows_http=given.allow_faults))
    except CommandFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
