"""The metrics of the updater, as data. Those that the server exports too are in its catalog alone."""

from common.metric_catalog import MetricCatalog, MetricSpec, counter, gauge
from common.process_metrics import PROCESS_LABELS, PROCESS_METRICS
from common.settings_reload import SETTINGS_METRICS

UPDATES = counter(
    "hotslot_updates_total",
    "Updates that have ended, by outcome.",
    "model",
    "outcome",
    "reason",
    use='Alert on outcome="REFUSED" or "ROLLED_BACK": `hotslot updates show` explains it.',
)
ERRORS = counter(
    "hotslot_updater_errors_total",
    "Errors of the updater itself.",
    "model",
    "error",
    use="Alert on any; the log has a line for each.",
)
STAGE = gauge(
    "hotslot_update_stage",
    "1 for the current stage of a model's updates, 0 for the others.",
    "model",
    "stage",
    use='"HELD" for long: an update waits for an operator, or for room on the disk.',
)
LOOP_RUNNING = gauge(
    "hotslot_update_loop_running",
    "1 while the update loop of a model runs, 0 while it has failed, the journal cannot be trusted, or it starts.",
    "model",
    use="Alert on 0 for a minute: `hotslot updates status` says why and what to do. The server keeps serving.",
)
FAILED_DOWNLOADS = gauge(
    "hotslot_failed_downloads",
    "Downloads that failed in a row; 0 after one that succeeded, and when the updater starts.",
    "model",
    use="Alert on 3 and more: `hotslot updates status` says why the hub does not send what it lists.",
)
GOLDEN_SET = gauge(
    "hotslot_golden_set_configured",
    "1 if the settings name a golden set for the model, else 0.",
    "model",
    use="Alert on 0: each update waits as HELD for a person.",
)
QUARANTINED = gauge(
    "hotslot_quarantined_revisions",
    "Source digests in quarantine.",
    "model",
    use="Revisions that were refused or rolled back, and are not tried again.",
)
PAUSED = gauge(
    "hotslot_updates_paused", "1 while updates are paused, else 0.", "model", use="1 for long: forgotten after a pause."
)
COMMITTED_INFO = gauge(
    "hotslot_committed_info",
    "1 for the committed revision, which is its label.",
    "model",
    "revision",
    use="Which revision a restart serves.",
)
MIX_DISTANCE = gauge(
    "hotslot_label_mix_distance",
    "Share of labels, 0 to 1, that moved between the committed revision's answers and the previous one's at the same"
    " hours of the day.",
    "model",
    use="Alert above compare.max_mix_change: the event label_mix_changed names the labels.",
)
BREAKER_STATE = gauge(
    "hotslot_breaker_state",
    "State of a circuit breaker: 0 closed, 1 half open, 2 open.",
    "model",
    "breaker",
    use="Alert on 2 for long: the hub, activations or the device fail again and again.",
)
BREAKER_LEFT = gauge(
    "hotslot_breaker_left_seconds",
    "Open: time until the next attempt; half open: time until its attempt counts as failed; closed: 0.",
    "model",
    "breaker",
    use="When the next attempt is due.",
)
HUB_ANSWERED = gauge(
    "hotslot_hub_answered_timestamp_seconds",
    "When the hub last answered, seconds since 1970.",
    "model",
    use="Alert when it is older than a few poll intervals.",
)
HUB_CHANGED = gauge(
    "hotslot_hub_listing_changed_timestamp_seconds",
    "When the hub's listing last changed, seconds since 1970; a stale mirror answers but never changes.",
    "model",
    use="Alert when it is older than the usual time between your releases.",
)
HUB_NEWEST = gauge(
    "hotslot_hub_newest_listed_timestamp_seconds",
    "When the highest release was first listed, seconds since 1970.",
    "model",
    use="How long the newest release is known.",
)
HUB_NAMES = gauge(
    "hotslot_hub_names",
    "Revisions that the hub lists.",
    "model",
    use="0: the repository is empty, or the wrong one.",
)
HUB_LEFT_OUT = gauge(
    "hotslot_hub_left_out_names",
    "Revisions on the hub that are not followed: no releases, or other than the followed branch.",
    "model",
    use="As many as hotslot_hub_names: nothing can be installed; `hotslot updates check` names them.",
)
REPUBLISHED = gauge(
    "hotslot_republished_revisions",
    "Known versions that the hub lists with other content.",
    "model",
    use="Alert on any: a version was published again; it is not installed.",
)
WEBHOOK_QUEUED = gauge(
    "hotslot_webhook_queued_events",
    "Events that wait for a webhook receiver.",
    "hook",
    use="Alert when it grows: the receiver is down.",
)
WEBHOOK_DELIVERED = counter(
    "hotslot_webhook_delivered_total", "Events that a webhook receiver has accepted.", "hook", use="Deliveries work."
)
WEBHOOK_FAILURES = counter(
    "hotslot_webhook_failures_total",
    "Failed delivery attempts; the same event may be sent again.",
    "hook",
    "reason",
    use="Why a receiver does not accept events.",
)
WEBHOOK_LOST = counter(
    "hotslot_webhook_lost_total",
    "Events that were never delivered.",
    "hook",
    "reason",
    use="Alert on any: read what was missed with `hotslot updates`.",
)

WEBHOOK_METRICS: tuple[MetricSpec, ...] = (WEBHOOK_QUEUED, WEBHOOK_DELIVERED, WEBHOOK_FAILURES, WEBHOOK_LOST)
_METRICS: tuple[MetricSpec, ...] = (
    *(
        UPDATES,
        ERRORS,
        LOOP_RUNNING,
        STAGE,
        FAILED_DOWNLOADS,
        GOLDEN_SET,
        QUARANTINED,
        PAUSED,
        COMMITTED_INFO,
        BREAKER_STATE,
        BREAKER_LEFT,
    ),
    *(HUB_ANSWERED, HUB_CHANGED, HUB_NEWEST, HUB_NAMES, HUB_LEFT_OUT, REPUBLISHED, MIX_DISTANCE),
    *WEBHOOK_METRICS,
    *SETTINGS_METRICS,
    *PROCESS_METRICS,
)
_LABELS = {
    "model": "Name in hotslot.toml; of an error: empty if it concerns all models.",
    "outcome": '"COMMITTED", "REFUSED" (before it answered a caller), "ROLLED_BACK" (after), "ABANDONED".',
    "reason": (
        "Of an update: its reason, as in `hotslot updates show`; empty if committed. Of a failed delivery: the error. "
        'Of a lost event: "refused" too often, or "overflow" of the queue.'
    ),
    "error": "As the log event.",
    "stage": "As in `hotslot updates status`.",
    "revision": "Version on the hub.",
    "breaker": '"hub", "activation" or "device".',
    "hook": "Name of the webhook in hotslot.toml.",
    **PROCESS_LABELS,
}
CATALOG = MetricCatalog("Updater", "`updater.metrics_port`", _LABELS, _METRICS)
