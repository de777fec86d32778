"""The panels of the dashboard."""

from cli.monitoring.panel import RATE, Panel, PanelKind, PanelRow, Query
from common.usage_limits import GPU_MEMORY

_ITEMS = "hotslot_items_total{$where}"
_SECONDS = "hotslot_item_seconds_bucket{$where,"


def _quantile(share: float, stage: str, by: str) -> str:
    return f'histogram_quantile({share}, sum by ({by}, le) (rate({_SECONDS}stage="{stage}"}}[{RATE}])))'


def _mean(metric: str, matchers: str, by: str) -> str:
    return (
        f"sum by ({by}) (rate({metric}_sum{matchers}[{RATE}])) / sum by ({by}) (rate({metric}_count{matchers}[{RATE}]))"
    )


_TRAFFIC = PanelRow(
    "Traffic",
    (
        Panel(
            "Items by outcome",
            "Unary requests and stream items; failed is a fault of the server, refused and expired are too much load.",
            "reqps",
            (Query(f"sum by (model, outcome) (rate({_ITEMS}[{RATE}]))", "{{model}} {{outcome}}"),),
        ),
        Panel(
            "Failed and turned away",
            "Shares of all items. Alerts: above 5 % failed, above 1 % turned away.",
            "percentunit",
            (
                Query("model:hotslot_items_failed:ratio5m", "{{model}} failed"),
                Query("model:hotslot_items_turned_away:ratio5m", "{{model}} turned away"),
            ),
        ),
        Panel(
            "Latency",
            "Of answered items, from acceptance to answer.",
            "s",
            (
                Query(_quantile(0.5, "total", "model"), "{{model}} p50"),
                Query(_quantile(0.99, "total", "model"), "{{model}} p99"),
            ),
        ),
        Panel(
            "Latency by revision, p95",
            "A revision that answers later than the one before shows here, with the mark of its swap.",
            "s",
            (Query(_quantile(0.95, "total", "model, revision"), "{{model}} {{revision}}"),),
        ),
        Panel(
            "Where the time goes",
            "Mean of each stage: queue is load, prepare are pictures, compute is the model.",
            "s",
            (Query(_mean("hotslot_item_seconds", '{$where, stage!="total"}', "model, stage"), "{{model}} {{stage}}"),),
            stacks=True,
        ),
        Panel(
            "Calls by code",
            "All services; a stream is one call.",
            "reqps",
            (Query(f"sum by (grpc_code) (rate(grpc_server_handled_total{{$on}}[{RATE}]))", "{{grpc_code}}"),),
        ),
    ),
)
_LOAD = PanelRow(
    "Load",
    (
        Panel(
            "Wait for the device",
            "Estimate from the waiting rows and the device time of a row; for autoscalers.",
            "s",
            (
                Query("instance_model:hotslot_wait_seconds:estimate1m{$where}", "{{instance}} {{model}}"),
                Query("model:hotslot_queue_seconds:p95_5m", "{{model}} p95 in the queue"),
            ),
        ),
        Panel(
            "Device busy",
            "Share of time in which the device computes.",
            "percentunit",
            (Query("instance_model:hotslot_device_busy:ratio1m{$where}", "{{instance}} {{model}}"),),
        ),
        Panel(
            "Rows per device call",
            "A call of several rows costs less than several calls.",
            "short",
            (Query(_mean("hotslot_device_call_rows", "{$where}", "model, revision"), "{{model}} {{revision}}"),),
        ),
        Panel(
            "Waiting",
            "Items in the queue by priority, and accepted items without an outcome.",
            "short",
            (
                Query("sum by (model, priority) (hotslot_waiting_requests{$where})", "{{model}} {{priority}}"),
                Query("sum by (model) (hotslot_unanswered_requests{$where})", "{{model}} unanswered"),
            ),
        ),
        Panel(
            "Pictures",
            "Decoded and refused pictures by format and outcome, and items that wait to be decoded.",
            "short",
            (
                Query(
                    f"sum by (model, format, picture_outcome) (rate(hotslot_pictures_total{{$where}}[{RATE}]))",
                    "{{model}} {{format}} {{picture_outcome}} a second",
                ),
                Query("sum by (model) (hotslot_queued_preparations{$where})", "{{model}} waiting"),
            ),
        ),
        Panel(
            "Memory of requests",
            "Received, waiting or running; near the limit requests are refused.",
            "percentunit",
            (Query("hotslot_held_bytes{$on} / hotslot_max_held_bytes{$on}", "{{instance}}"),),
        ),
        Panel(
            "Overloaded, refused inputs",
            "1 while a queue is kept short; inputs that end runners.",
            "short",
            (
                Query("hotslot_overloaded{$where}", "{{model}} overloaded"),
                Query("hotslot_poison_inputs{$where}", "{{model}} poison inputs"),
            ),
        ),
    ),
)
_UPDATES = PanelRow(
    "Updates",
    (
        Panel(
            "Stage",
            "HELD waits for an operator, or for room on the disk.",
            "short",
            (Query("hotslot_update_stage{$where} == 1", "{{model}} {{stage}}"),),
            PanelKind.STATES,
            12,
        ),
        Panel(
            "Committed",
            "What a restart serves.",
            "short",
            (Query("hotslot_committed_info{$where}"),),
            PanelKind.TABLE,
            6,
        ),
        Panel(
            "Slots",
            "State, role and revision of each slot.",
            "short",
            (Query("hotslot_slot_info{$where} == 1"),),
            PanelKind.TABLE,
            6,
        ),
        Panel(
            "Swaps",
            "Changes of the active slot and ends of trials.",
            "short",
            (Query("sum by (model, change) (hotslot_swaps_total{$where})", "{{model}} {{change}}"),),
        ),
        Panel(
            "Updates by outcome",
            "Since the updater started; `hotslot updates history` has all.",
            "short",
            (
                Query(
                    "sum by (model, outcome, reason) (hotslot_updates_total{$where})",
                    "{{model}} {{outcome}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "What trials failed",
            "Items that a revision on trial failed and the previous one answered, by reason.",
            "short",
            (
                Query(
                    "sum by (model, revision, reason) (hotslot_handovers_total{$where})",
                    "{{model}} {{revision}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Hub",
            "Time since the hub answered, and since its listing changed.",
            "s",
            (
                Query("time() - hotslot_hub_answered_timestamp_seconds{$where}", "{{model}} answered"),
                Query("time() - hotslot_hub_listing_changed_timestamp_seconds{$where}", "{{model}} listing"),
            ),
        ),
        Panel(
            "Breakers, downloads, quarantine",
            "2 is an open breaker; downloads that failed in a row; revisions in quarantine.",
            "short",
            (
                Query("hotslot_breaker_state{$where}", "{{model}} {{breaker}}"),
                Query("hotslot_failed_downloads{$where}", "{{model}} failed downloads"),
                Query("hotslot_quarantined_revisions{$where}", "{{model}} quarantine"),
            ),
        ),
        Panel(
            "Loop, golden set, pause",
            "1: the loop runs, a golden set is configured, updates are paused.",
            "short",
            (
                Query("hotslot_update_loop_running{$where}", "{{model}} loop"),
                Query("hotslot_golden_set_configured{$where}", "{{model}} golden set"),
                Query("hotslot_updates_paused{$where}", "{{model}} paused"),
            ),
        ),
    ),
)
_ANSWERS = PanelRow(
    "Answers",
    (
        Panel(
            "Label mix by revision",
            "Shares of the last hour. Another mix after a swap: the revision judges differently.",
            "percentunit",
            (
                Query(
                    'model_revision_label:hotslot_answers:share1h{model=~"$model"}',
                    "{{model}} {{revision}} {{label}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Answers a second by label",
            "Over all revisions.",
            "reqps",
            (Query(f"sum by (model, label) (rate(hotslot_answers_total{{$where}}[{RATE}]))", "{{model}} {{label}}"),),
            width=12,
            stacks=True,
        ),
    ),
)
_DEVICES = PanelRow(
    "Runners and devices",
    (
        Panel(
            "GPU memory",
            "As the runners see it, by all processes. "
            f"Alerts: {GPU_MEMORY.degraded * 100:g} and {GPU_MEMORY.failed * 100:g} %.",
            "percentunit",
            (Query("hotslot_device_memory_used_bytes{$on} / hotslot_device_memory_total_bytes{$on}", "{{device}}"),),
        ),
        Panel(
            "GPU use (DCGM)",
            "From NVIDIA's dcgm-exporter.",
            "percent",
            (
                Query("DCGM_FI_DEV_GPU_UTIL", "{{Hostname}} GPU {{gpu}}"),
                Query("DCGM_FI_DEV_MEM_COPY_UTIL", "{{Hostname}} GPU {{gpu}} memory"),
            ),
        ),
        Panel(
            "GPU frame buffer, power, temperature (DCGM)",
            "From NVIDIA's dcgm-exporter: MiB, watts, °C.",
            "short",
            (
                Query("DCGM_FI_DEV_FB_USED", "{{Hostname}} GPU {{gpu}} MiB"),
                Query("DCGM_FI_DEV_POWER_USAGE", "{{Hostname}} GPU {{gpu}} W"),
                Query("DCGM_FI_DEV_GPU_TEMP", "{{Hostname}} GPU {{gpu}} °C"),
            ),
        ),
        Panel(
            "CPUs of runners",
            "Rate of their CPU time.",
            "short",
            (
                Query(
                    f"sum by (model, slot) (rate(hotslot_runner_cpu_seconds_total{{$where}}[{RATE}]))",
                    "{{model}} {{slot}}",
                ),
            ),
        ),
        Panel(
            "Loads",
            "Mean duration; deaths of runners since the server started.",
            "s",
            (
                Query(
                    "sum by (model, device) (hotslot_load_seconds_sum{$where})"
                    " / sum by (model, device) (hotslot_load_seconds_count{$where})",
                    "{{model}} {{device}}",
                ),
                Query("sum by (model) (hotslot_runner_deaths_total{$where})", "{{model}} deaths"),
                Query("hotslot_fork_server_failures_total{$on}", "{{instance}} fork server's failures"),
            ),
        ),
        Panel(
            "On the CPU for lack of memory",
            "1 while a model runs on the CPU because its device ran out of memory.",
            "short",
            (Query("hotslot_cpu_fallback{$where} or hotslot_model_given_up{$where}", "{{model}} {{device}}"),),
        ),
    ),
)
_MACHINE = PanelRow(
    "Machine",
    (
        Panel(
            "Memory plan",
            "Runners, server and updater, below the limit of the machine or container; an update loads a second model.",
            "bytes",
            (
                Query("hotslot_runner_resident_memory_bytes{$where}", "{{model}} runner {{slot}}"),
                Query("hotslot_fork_server_resident_memory_bytes{$on}", "{{instance}} fork server"),
                Query('process_resident_memory_bytes{job=~"hotslot.*"}', "{{job}}"),
                Query("hotslot_memory_used_bytes{$on}", "{{instance}} used"),
                Query("hotslot_memory_total_bytes{$on}", "{{instance}} total"),
            ),
            width=12,
        ),
        Panel(
            "Disk of the state folder",
            "Free share. Alerts: 10 and 2 %.",
            "percentunit",
            (Query("hotslot_disk_free_bytes{$on} / hotslot_disk_total_bytes{$on}", "{{instance}}"),),
            width=6,
        ),
        Panel(
            "Event-loop lag",
            "Longest of the last minute. Alert: 0.5 s.",
            "s",
            (Query("hotslot_loop_lag_seconds{$on}", "{{instance}}"),),
            width=6,
        ),
        Panel(
            "File descriptors",
            "Share of the limit.",
            "percentunit",
            (Query('process_open_fds{job=~"hotslot.*"} / process_max_fds{job=~"hotslot.*"}', "{{job}} {{instance}}"),),
        ),
        Panel(
            "Log lines dropped",
            "More than 0: the log is incomplete.",
            "short",
            (Query("hotslot_log_lines_dropped_total{$on}", "{{instance}}"),),
        ),
        Panel(
            "Tasks of the event loop",
            "Grows with calls and connections.",
            "short",
            (Query("hotslot_loop_tasks{$on}", "{{instance}}"),),
        ),
    ),
)
_FLEET = PanelRow(
    "Fleet",
    (
        Panel(
            "Instances",
            "Version of each process.",
            "short",
            (Query("hotslot_build_info{$on}"),),
            PanelKind.TABLE,
        ),
        Panel(
            "Ready",
            "1 while the health service reports SERVING.",
            "short",
            (Query('hotslot_ready{$on, service!~"liveness|hotslot.*|grpc.*"}', "{{instance}} {{service}}"),),
        ),
        Panel(
            "Items a second by instance",
            "Uneven: the load balancer, or an instance that is not ready.",
            "reqps",
            (Query(f"sum by (instance, model) (rate({_ITEMS}[{RATE}]))", "{{instance}} {{model}}"),),
        ),
    ),
)
ROWS: tuple[PanelRow, ...] = (_TRAFFIC, _LOAD, _UPDATES, _ANSWERS, _DEVICES, _MACHINE, _FLEET)
