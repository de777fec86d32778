"""The recording rules."""

from cli.monitoring.alert import Recording

_ITEMS = "hotslot_items_total"
_SECONDS = "hotslot_item_seconds_bucket"


def _quantile(share: float, stage: str, *by: str) -> str:
    labels = ", ".join((*by, "le"))
    return f'histogram_quantile({share}, sum by ({labels}) (rate({_SECONDS}{{stage="{stage}"}}[5m])))'


def _share(matcher: str) -> str:
    """Of all items; 0, not nothing, if there are none of these."""
    every = f"sum by (model) (rate({_ITEMS}[5m]))"
    return f"(sum by (model) (rate({_ITEMS}{{{matcher}}}[5m])) or {every} * 0) / ({every} > 0)"


RECORDINGS: tuple[Recording, ...] = (
    Recording("model_outcome:hotslot_items:rate5m", f"sum by (model, outcome) (rate({_ITEMS}[5m]))", "Items a second."),
    Recording(
        "model:hotslot_items_failed:ratio5m",
        _share('outcome="failed"'),
        "Share of items that the server, a runner or the engine failed.",
    ),
    Recording(
        "model:hotslot_items_turned_away:ratio5m",
        _share('outcome=~"refused|expired"'),
        "Share of valid items that were refused, or not answered before their deadline.",
    ),
    Recording("model:hotslot_item_seconds:p50_5m", _quantile(0.5, "total", "model"), "Median latency of answers."),
    Recording("model:hotslot_item_seconds:p99_5m", _quantile(0.99, "total", "model"), "Latency of the slowest."),
    Recording(
        "model_revision:hotslot_item_seconds:p95_5m",
        _quantile(0.95, "total", "model", "revision"),
        "Latency by revision: an update that is slower shows here.",
    ),
    Recording(
        "model:hotslot_queue_seconds:p95_5m",
        _quantile(0.95, "queue", "model"),
        "Time in the queue: the first sign of too much load.",
    ),
    Recording(
        "model_revision_label:hotslot_answers:share1h",
        "sum by (model, revision, label) (increase(hotslot_answers_total[1h]))"
        " / on (model, revision) group_left () sum by (model, revision) (increase(hotslot_answers_total[1h]) > 0)",
        "Label mix by revision.",
    ),
    Recording(
        "model_label:hotslot_answers:share1h",
        "sum by (model, label) (increase(hotslot_answers_total[1h]))"
        " / on (model) group_left () sum by (model) (increase(hotslot_answers_total[1h]) > 0)",
        "Label mix of the last hour; compared with yesterday's.",
    ),
    Recording(
        "instance_model:hotslot_device_busy:ratio1m",
        "sum by (instance, model) (rate(hotslot_device_call_seconds_sum[1m]))",
        "Share of time in which the device computes; 1 is all. For an autoscaler: scale out above 0.8.",
    ),
    Recording(
        "instance_model:hotslot_wait_seconds:estimate1m",
        "sum by (instance, model) (hotslot_waiting_rows)"
        " * sum by (instance, model) (rate(hotslot_device_call_seconds_sum[1m]))"
        " / (sum by (instance, model) (rate(hotslot_device_call_rows_sum[1m])) > 0)",
        "Seconds until the queue is computed: waiting rows times the device time of a row. For an autoscaler: its "
        "average over the instances grows before requests are refused.",
    ),
    Recording(
        "instance_model_device:hotslot_slow_loads:count",
        'sum by (instance, model, device) (hotslot_load_seconds_bucket{le="+Inf"})'
        ' - sum by (instance, model, device) (hotslot_load_seconds_bucket{le="5.0"})',
        "Loads that took more than five seconds, since the server started.",
    ),
)
