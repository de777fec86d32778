"""For each alert, samples with which it must fire and samples with which it must not: `promtool test rules` runs them.

python -m dev.watch.rule_cases > deploy/prometheus/hotslot.test.yml
"""

import json
import sys
from dataclasses import dataclass

from cli.monitoring.catalog import list_alerts

Series = dict[str, str]  # series → samples, one a minute, as promtool writes them: `0+10x20` begins at 0 and adds 10


@dataclass(frozen=True, slots=True)
class RuleCase:
    """One alert: it fires at a time with the bad samples, and is silent then with the good ones."""

    alert: str
    at: str
    bad: Series
    good: Series


_ITEMS = 'hotslot_items_total{{model="shapes",revision="v1",device="cpu",outcome="{}",reason="{}"}}'
_ANSWERED, _FAILED = _ITEMS.format("answered", ""), _ITEMS.format("failed", "RUNNER_DIED")
_REFUSED = _ITEMS.format("refused", "QUEUE_FULL")


def _seconds(stage: str, below: str, above: str) -> Series:
    """Histogram samples: how many answers took at most 0.5 s, and how many at most 5 s."""
    name = f'hotslot_item_seconds_bucket{{model="shapes",revision="v1",stage="{stage}",le="BOUND"}}'
    bounds = {"0.5": below, "5.0": above, "+Inf": above}
    return {name.replace("BOUND", bound): samples for bound, samples in bounds.items()}


def _gauge(alert: str, series: str, bad: float, good: float, at: str = "20m", minutes: int = 40) -> RuleCase:
    return RuleCase(alert, at, {series: f"{bad:.10g}x{minutes}"}, {series: f"{good:.10g}x{minutes}"})


def _pair(alert: str, part: str, whole: str, bad: float, good: float) -> RuleCase:
    """A share of 100."""
    return RuleCase(alert, "20m", {part: f"{bad}x40", whole: "100x40"}, {part: f"{good}x40", whole: "100x40"})


def _mix(yes: str, no: str) -> Series:
    name = 'hotslot_answers_total{{model="shapes",revision="v1",label="{}"}}'
    return {name.format("yes"): yes, name.format("no"): no}


_HELD = 'hotslot_update_stage{model="shapes",stage="HELD"}'
_LOADS = 'hotslot_load_seconds_bucket{{instance="a",model="shapes",device="cpu",le="{}"}}'
_GPU_USED = 'hotslot_device_memory_used_bytes{instance="a",device="cuda:0"}'
_GPU_TOTAL = 'hotslot_device_memory_total_bytes{instance="a",device="cuda:0"}'
_UPDATES = 'hotslot_updates_total{model="shapes",outcome="ROLLED_BACK",reason="BURST"}'
_COMMITTED = 'hotslot_updates_total{model="shapes",outcome="COMMITTED",reason=""}'
_RELAY = 'hotslot_alert_relay_failures_total{target="ops",reason="UNREACHABLE"}'
_MEMORY_USED = 'hotslot_memory_used_bytes{instance="a"}'
_MEMORY_TOTAL = 'hotslot_memory_total_bytes{instance="a"}'
_EXPIRY = 'hotslot_certificate_expiry_timestamp_seconds{instance="a"}'

CASES: tuple[RuleCase, ...] = (
    _gauge("HotslotTargetDown", 'up{job="hotslot-server",instance="a"}', 0, 1),
    _gauge("HotslotModelNotReady", 'hotslot_ready{instance="a",service="shapes"}', 0, 1),
    _gauge("HotslotModelGivenUp", 'hotslot_model_given_up{model="shapes"}', 1, 0),
    RuleCase(
        "HotslotErrorShareHigh",
        "20m",
        {_ANSWERED: "0+90x40", _FAILED: "0+10x40"},
        {_ANSWERED: "0+97x40", _FAILED: "0+3x40"},
    ),
    RuleCase(  # three percent: yesterday half a percent, or as much as today
        "HotslotErrorShareRising",
        "25h",
        {_ANSWERED: "0+995x1440 1432800+970x120", _FAILED: "0+5x1440 7200+30x120"},
        {_ANSWERED: "0+970x1560", _FAILED: "0+30x1560"},
    ),
    RuleCase(
        "HotslotLatencyHigh",
        "20m",
        _seconds("total", "0+90x40", "0+100x40"),
        _seconds("total", "0+100x40", "0+100x40"),
    ),
    _gauge("HotslotQueueLong", 'hotslot_overloaded{instance="a",model="shapes"}', 1, 0),
    RuleCase(
        "HotslotQueueLong",
        "20m",
        _seconds("queue", "0+90x40", "0+100x40"),
        _seconds("queue", "0+100x40", "0+100x40"),
    ),
    RuleCase(
        "HotslotRefusals",
        "20m",
        {_ANSWERED: "0+97x40", _REFUSED: "0+3x40"},
        {_ANSWERED: "0+1000x40", _REFUSED: "0+3x40"},
    ),
    _pair("HotslotHeldMemoryHigh", 'hotslot_held_bytes{instance="a"}', 'hotslot_max_held_bytes{instance="a"}', 95, 50),
    _gauge("HotslotPoisonInputs", 'hotslot_poison_inputs{model="shapes"}', 1, 0),
    RuleCase(
        "HotslotLabelMixShifted",
        "26h",
        _mix("0+70x1440 100800+20x180", "0+30x1440 43200+80x180"),
        _mix("0+70x1620", "0+30x1620"),
    ),
    RuleCase(
        "HotslotRunnerDied",
        "12m",
        {'hotslot_runner_deaths_total{instance="a",model="shapes",slot="a"}': "0x9 1x40"},
        {'hotslot_runner_deaths_total{instance="a",model="shapes",slot="a"}': "1x60"},
    ),
    RuleCase(
        "HotslotLoadSlow",
        "12m",
        {_LOADS.format("5.0"): "_x10 0x40", _LOADS.format("+Inf"): "_x10 1x40"},
        {_LOADS.format("5.0"): "_x10 1x40", _LOADS.format("+Inf"): "_x10 1x40"},
    ),
    _gauge("HotslotCpuFallback", 'hotslot_cpu_fallback{model="shapes",device="cuda:0",fallback_device="cpu"}', 1, 0),
    _pair("HotslotGpuMemoryHigh", _GPU_USED, _GPU_TOTAL, 90, 80),
    _pair("HotslotGpuMemoryFull", _GPU_USED, _GPU_TOTAL, 96, 90),
    _gauge("HotslotDownloadsFailing", 'hotslot_failed_downloads{model="shapes"}', 3, 2),
    RuleCase(
        "HotslotHubSilent",
        "30m",
        {'hotslot_hub_answered_timestamp_seconds{model="shapes"}': "0x60"},
        {'hotslot_hub_answered_timestamp_seconds{model="shapes"}': "0+60x60"},
    ),
    # The clock of a test begins at 0: a listing before that is older than a month.
    _gauge("HotslotListingOld", 'hotslot_hub_listing_changed_timestamp_seconds{model="shapes"}', -3e6, 0, "70m", 90),
    RuleCase(
        "HotslotNothingFollowed",
        "40m",
        {'hotslot_hub_names{model="shapes"}': "2x60", 'hotslot_hub_left_out_names{model="shapes"}': "2x60"},
        {'hotslot_hub_names{model="shapes"}': "2x60", 'hotslot_hub_left_out_names{model="shapes"}': "1x60"},
    ),
    _gauge("HotslotNoGoldenSet", 'hotslot_golden_set_configured{model="shapes"}', 0, 1),
    _gauge("HotslotUpdateHeld", _HELD, 1, 0, "40m", 60),
    RuleCase("HotslotUpdateFailed", "12m", {_UPDATES: "_x10 1x40"}, {_COMMITTED: "_x10 1x40"}),
    RuleCase(
        "HotslotRevisionQuarantined",
        "30m",
        {'hotslot_quarantined_revisions{model="shapes"}': "1x20 2x40"},
        {'hotslot_quarantined_revisions{model="shapes"}': "2x60"},
    ),
    _gauge("HotslotRevisionRepublished", 'hotslot_republished_revisions{model="shapes"}', 1, 0),
    _gauge("HotslotUpdateLoopStopped", 'hotslot_update_loop_running{model="shapes"}', 0, 1),
    _gauge("HotslotBreakerOpen", 'hotslot_breaker_state{model="shapes",breaker="hub"}', 2, 1),
    _gauge("HotslotUpdatesPaused", 'hotslot_updates_paused{model="shapes"}', 1, 0, "25h", 1560),
    RuleCase(
        "HotslotUpdaterErrors",
        "12m",
        {'hotslot_updater_errors_total{model="shapes",error="step_failed"}': "_x10 1x40"},
        {'hotslot_updater_errors_total{model="shapes",error="step_failed"}': "0x60"},
    ),
    RuleCase(
        "HotslotWebhookEventsLost",
        "12m",
        {'hotslot_webhook_lost_total{hook="ops",reason="overflow"}': "_x10 1x40"},
        {'hotslot_webhook_lost_total{hook="ops",reason="overflow"}': "0x60"},
    ),
    _gauge("HotslotWebhookQueueLong", 'hotslot_webhook_queued_events{hook="ops"}', 21, 3),
    _gauge("HotslotLoopLag", 'hotslot_loop_lag_seconds{instance="a"}', 0.6, 0.1),
    RuleCase(
        "HotslotLogLinesDropped",
        "12m",
        {'hotslot_log_lines_dropped_total{instance="a"}': "0x9 5x40"},
        {'hotslot_log_lines_dropped_total{instance="a"}': "5x60"},
    ),
    _pair("HotslotDiskLow", 'hotslot_disk_free_bytes{instance="a"}', 'hotslot_disk_total_bytes{instance="a"}', 9, 11),
    _pair("HotslotDiskFull", 'hotslot_disk_free_bytes{instance="a"}', 'hotslot_disk_total_bytes{instance="a"}', 1, 3),
    _pair(
        "HotslotMemoryHigh",
        _MEMORY_USED,
        _MEMORY_TOTAL,
        95,
        85,
    ),
    _pair(
        "HotslotDescriptorsHigh",
        'process_open_fds{job="hotslot-server",instance="a"}',
        'process_max_fds{job="hotslot-server",instance="a"}',
        90,
        70,
    ),
    _gauge("HotslotDrainStuck", 'hotslot_draining{instance="a"}', 1, 0),
    _gauge(
        "HotslotCertificateEnds",
        _EXPIRY,
        518400,
        864000,
        "2h",
        180,
    ),
    _gauge("HotslotCertificateEnded", _EXPIRY, 3600, 518400),
    _gauge("HotslotReloadFailed", 'hotslot_last_reload_successful{instance="a",file="tokens"}', 0, 1),
    RuleCase("HotslotAlertsNotDelivered", "22m", {_RELAY: "_x10 0+1x40"}, {_RELAY: "1x60"}),
    _gauge("HotslotNoTokens", 'hotslot_tokens{instance="a"}', 0, 2),
)


def render_tests() -> str:
    """The file for `promtool test rules`."""
    text = "# Made by `python -m dev.watch.rule_cases`. Run: promtool test rules hotslot.test.yml\n"
    text += "rule_files: [hotslot.rules.yml]\nevaluation_interval: 1m\ntests:\n"
    for case in CASES:
        text += _render(case, case.bad, fires=True) + _render(case, case.good, fires=False)
    return text


def find_untested() -> list[str]:
    """Alerts without a case."""
    tested = {case.alert for case in CASES}
    return [alert.name for alert in list_alerts() if alert.name not in tested]


def _render(case: RuleCase, series: Series, *, fires: bool) -> str:
    selector = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
    text = f"  - name: {case.alert} {'fires' if fires else 'is silent'}\n    interval: 1m\n    input_series:\n"
    for name, values in series.items():
        text += f"      - {{series: {json.dumps(name)}, values: {json.dumps(values)}}}\n"
    text += (
        f"    promql_expr_test:\n      - expr: {json.dumps(f'count({selector}) > 0')}\n        eval_time: {case.at}\n"
    )
    return text + ("        exp_samples: [{labels: '{}', value: 1}]\n" if fires else "        exp_samples: []\n")


if __name__ == "__main__":
    sys.stdout.write(render_tests())
