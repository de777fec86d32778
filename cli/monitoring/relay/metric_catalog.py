"""The metrics of the alert relay, as data."""

from common.metric_catalog import MetricCatalog, counter, gauge
from common.process_metrics import PROCESS_LABELS, PROCESS_METRICS

DELIVERED = counter(
    "hotslot_alert_relay_delivered_total", "Notifications that a target has accepted.", "target", use="Deliveries work."
)
FAILURES = counter(
    "hotslot_alert_relay_failures_total",
    "Messages that were not accepted; they are sent again.",
    "target",
    "reason",
    use="Alert if it grows: alerts do not reach people.",
)
LOST = counter(
    "hotslot_alert_relay_lost_total",
    "Notifications that a target will never accept, and that were given up.",
    "target",
    use="Alert on any: the log has alerts_lost with the target's answer.",
)
WAITING = gauge(
    "hotslot_alert_relay_waiting",
    "Notifications that wait for a target.",
    "target",
    use="Alert if it stays above 0: the target is away. At max_waiting Alertmanager keeps what is new.",
)
CATALOG = MetricCatalog(
    "Alert relay",
    "`port` of its own settings file",
    {
        "target": "Name of the target in the relay's settings.",
        "reason": "UNREACHABLE, TIMEOUT, TLS_FAILED, HTTP_…, RATE_LIMITED, BUSY, REFUSED, NO_CODE, MALFORMED, "
        "SECRET_UNUSABLE or QUEUE_UNUSABLE.",
        **PROCESS_LABELS,
    },
    (DELIVERED, FAILURES, LOST, WAITING, *PROCESS_METRICS),
)
