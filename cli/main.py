"""The entry point `hotslot`: light for probes, the full command line for people."""

import os
import sys
from collections.abc import Sequence

from common.exit_codes import ExitCode


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (see `hotslot --help`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A probe is started every few seconds: it must not pay for the imports that only people need.
    if words[:1] == ["healthcheck"]:
        from cli import healthcheck  # noqa: PLC0415  see above

        code = healthcheck.check(words[1:])
        sys.stderr.flush()
        os._exit(code)  # gRPC's threads would hold an orderly end up for 0.2 s
    from cli import settings  # noqa: PLC0415  see above

    settings.quieten_grpc()
    from cli import problems  # noqa: PLC0415  see above
    from cli.app import app  # noqa: PLC0415  see above

    try:
        app(args=words, prog_name="hotslot")
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except problems.EXPECTED as error:
        sys.exit(problems.tell(error))


if __name__ == "__main__":
    run()
