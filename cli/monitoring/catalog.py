"""All alerts, by group."""

from cli.monitoring.alert import Alert, AlertGroup
from cli.monitoring.machine_alerts import ACCESS, MACHINE
from cli.monitoring.serving_alerts import ANSWERS, RUNNERS
from cli.monitoring.updates_alerts import UPDATES

GROUPS: tuple[AlertGroup, ...] = (ANSWERS, RUNNERS, UPDATES, MACHINE, ACCESS)


def list_alerts() -> list[Alert]:
    """All alerts in the order of their groups."""
    return [alert for group in GROUPS for alert in group.alerts]
