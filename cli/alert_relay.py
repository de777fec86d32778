"""`hotslot alert-relay`: brings Alertmanager's notifications to WeCom, DingTalk, Feishu and plain webhooks."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from cli.monitoring.relay.service import AlertRelay
from cli.monitoring.relay.settings import load_relay_settings
from cli.problems import CommandFailed, WronglyUsed
from common import logs
from common.address import ListenFailed
from common.clock import SystemClock
from common.stop_signals import StopSignals

EXAMPLE = """Example:  hotslot alert-relay alert-relay.toml

Next:  name http://127.0.0.1:9097/alerts/NAME in Alertmanager's webhook_configs; docs/alert-relay.md has both files."""


def alert_relay(
    settings: Annotated[Path, typer.Argument(metavar="FILE", help="Its settings; docs/alert-relay.md lists them.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Check the settings and end.", show_default=False)] = False,
) -> None:
    """Bring alerts to WeCom, DingTalk, Feishu or a plain webhook, until Ctrl-C.

    Receives Alertmanager's notifications, keeps them on disk until the chat has
    accepted them, and joins what waits in one message. The chat's code in the
    answer is checked, not only its HTTP status.
    """
    found = load_relay_settings(settings)
    if check:
        return
    with logs.configure("alert-relay", "info"):
        log = logs.get_logger()
        try:
            relay = AlertRelay(found, SystemClock(), log)
            relay.start()
        except ListenFailed as error:
            raise CommandFailed(f"the relay: {error}") from error
        except ValueError as error:
            raise WronglyUsed(f"{found.host!r} {error}") from error
        log.info("alert_relay_started", port=relay.port, targets=[target.name for target in found.targets])
        with StopSignals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
            signals.wait()
        relay.stop()
        log.info("alert_relay_stopped")
