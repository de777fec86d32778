"""The server's program: reads the settings, starts the first runners, then imports the server and serves.

Run as `python -m inference.server.main`; settings are read from hotslot.toml, see `hotslot config check`. Importing a
runner's engine takes longer than importing the server: this module imports little before the runners are started.
"""

import argparse
import sys
from pathlib import Path

from common.durable import AlreadyRunning, LockUnusable, lock_instance
from common.exit_codes import ExitCode
from common.paths import CONTROL_SOCKET, SERVER_LOCK, make_run_folder, socket_path
from common.settings import SettingsInvalid, format_mistake, load_settings, use_settings_file
from inference.server.runner_client.start import RunnerStarter
from inference.server.runner_specs import runner_spec
from inference.server.settings import ServerSettings


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.server.main",
        description="The gRPC server of hotslot. It is started by supervisord; see `hotslot serve`.",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        settings = load_settings(ServerSettings)
        socket_path(settings.state_dir, CONTROL_SOCKET)
        folder = make_run_folder(settings.state_dir)
    except SettingsInvalid as error:
        for mistake in error.mistakes:
            print(format_mistake(mistake), file=sys.stderr)  # noqa: T201  before there is a log
        return ExitCode.WRONG_USE
    try:
        with (
            lock_instance(folder / SERVER_LOCK),
            RunnerStarter([runner_spec(settings, model) for model in settings.models]) as early,
        ):
            from inference.server.server import serve  # noqa: PLC0415  while the runners import theirs

            return serve(settings, early)
    except AlreadyRunning:
        return _refuse(settings, "another server uses this state_dir")
    except LockUnusable as error:
        return _refuse(settings, str(error))


def _refuse(settings: ServerSettings, detail: str) -> int:
    from common import logs  # noqa: PLC0415  not needed otherwise

    with logs.configure("server", settings.logs.level):
        logs.get_logger().error("server_refused", detail=detail)
    return ExitCode.BUSY


if __name__ == "__main__":
    sys.exit(main())
