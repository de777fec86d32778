"""Alerts about what callers see, and about the device."""

from cli.monitoring.alert import Alert, AlertGroup, Severity, Step, grew
from common.usage_limits import GPU_MEMORY

_STATUS = "hotslot status"
_EXPLAIN = "hotslot logs explain hotslot.log"
_MORE = Step("the model is at its capacity", "add servers; `docs/performance.md` has measured rates")

ANSWERS = AlertGroup(
    "hotslot-answers",
    "What callers see",
    (
        Alert(
            "HotslotTargetDown",
            Severity.CRITICAL,
            'up{job=~"hotslot.*"} == 0',
            "2m",
            "{{ $labels.job }} on {{ $labels.instance }} serves no metrics",
            "The process has ended, hangs, or cannot be reached from Prometheus. Callers may be served all the same.",
            "hotslot doctor",
            (
                Step("the stack has stopped", "read the end of its log, then start it again with `hotslot serve`"),
                Step(
                    "the process runs",
                    "compare the port in Prometheus's configuration with what `hotslot config check` prints; the port "
                    "listens on 127.0.0.1 unless `metrics_host` says otherwise",
                ),
            ),
            ("server.metrics_host", "server.metrics_port", "updater.metrics_host", "updater.metrics_port"),
        ),
        Alert(
            "HotslotModelNotReady",
            Severity.CRITICAL,
            'hotslot_ready{service!~"|liveness|hotslot[.].*|grpc[.].*"} == 0',
            "2m",
            "{{ $labels.service }} is not served by {{ $labels.instance }}",
            "The health service reports NOT_SERVING for the model, so load balancers send it no calls.",
            _STATUS,
            (
                Step("no revision is committed yet", "`hotslot updates status` says what the first update waits for"),
                Step("its runner loads or dies again and again", f"`{_EXPLAIN}` shows the deaths with their reasons"),
                Step("the server drains", "it was told to stop; it comes back after a restart"),
            ),
        ),
        Alert(
            "HotslotModelGivenUp",
            Severity.CRITICAL,
            "hotslot_model_given_up == 1",
            "0m",
            "the runner of {{ $labels.model }} on {{ $labels.instance }} fails at every start",
            "The committed revision no longer loads, or its process dies at once. It is still restarted, with pauses.",
            _EXPLAIN,
            (
                Step(
                    "the bundle is damaged",
                    "`hotslot state verify` finds it; restore it from a backup, or go back with "
                    "`hotslot updates rollback REV`",
                ),
                Step(
                    "memory is short",
                    "`hotslot doctor` compares the memory plan with what is free; free some. Do not roll back: that "
                    "would put a good revision into quarantine",
                ),
                Step(
                    "the device has failed",
                    "`nvidia-smi` must list it; restart the stack when it does. Do not roll back",
                ),
            ),
            ("runner.respawn_give_up",),
        ),
        Alert(
            "HotslotErrorShareHigh",
            Severity.CRITICAL,
            "model:hotslot_items_failed:ratio5m > 0.05",
            "5m",
            "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} fail",
            "More than one request in twenty is accepted and then failed by the server, a runner or the engine.",
            _EXPLAIN,
            (
                Step(
                    "runners die",
                    "the story names the signal; SIGKILL with no reason in the log is usually the kernel's, for memory",
                ),
                Step("a new revision answers badly", "`hotslot updates rollback REV` takes it back"),
                Step("one caller sends what the engine cannot compute", "group by `reason` in hotslot_items_total"),
            ),
        ),
        Alert(
            "HotslotErrorShareRising",
            Severity.WARNING,
            "model:hotslot_items_failed:ratio5m > 0.01 unless on (model) (model:hotslot_items_failed:ratio5m"
            " <= on (model) 3 * avg_over_time(model:hotslot_items_failed:ratio5m[1h] offset 1d))",
            "10m",
            "{{ $labels.model }} fails {{ $value | humanizePercentage }}, three times yesterday's share",
            "The share is below five percent, but it is not what this model usually has.",
            "hotslot updates history",
            (
                Step("a revision was committed since", "`hotslot updates show ID` has its evidence"),
                Step("callers have changed", "group hotslot_items_total by `reason`"),
            ),
        ),
        Alert(
            "HotslotLatencyHigh",
            Severity.WARNING,
            "model:hotslot_item_seconds:p99_5m > 2",
            "10m",
            "one request to {{ $labels.model }} in a hundred takes {{ $value | humanizeDuration }}",
            "Callers with short deadlines give up. The stage that takes the time names the cause.",
            _EXPLAIN,
            (
                Step("stage queue is long", "there is too much load: see the runbook of HotslotQueueLong"),
                Step("stage prepare is long", "pictures are large or slow to decode: `server.max_image_seconds`"),
                Step(
                    "stage compute is long",
                    "the device is slow or shared: see the runbook of HotslotCpuFallback",
                ),
            ),
            ("server.max_image_seconds", "runner.max_call_seconds"),
        ),
        Alert(
            "HotslotQueueLong",
            Severity.WARNING,
            "max by (model) (hotslot_overloaded) == 1 or model:hotslot_queue_seconds:p95_5m > 1",
            "5m",
            "requests to {{ $labels.model }} wait long for the device",
            "More is offered than the device computes. The queue is kept short by refusing what would come too late.",
            _STATUS,
            (
                _MORE,
                Step("one caller sends much more than others", "give it a weight or a quota in `[[callers]]`"),
                Step("retries make it worse", "clients must wait before they retry; the error says how long"),
            ),
            ("callers[].weight", "callers[].rows_per_second", "scheduling.interactive_share"),
        ),
        Alert(
            "HotslotRefusals",
            Severity.WARNING,
            "model:hotslot_items_turned_away:ratio5m > 0.01",
            "10m",
            "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} are refused or expire",
            "Valid requests are turned away: overload, too little memory, not ready, or a deadline that is too short.",
            _EXPLAIN,
            (
                Step("reason QUEUE_FULL", "see the runbook of HotslotQueueLong"),
                Step("reason QUEUE_FULL, and the message names bytes", "see the runbook of HotslotHeldMemoryHigh"),
                Step("reason QUOTA_EXCEEDED", "one caller uses up its quota: raise it, or let it be slowed down"),
                Step("reason OUT_OF_MEMORY", "see the runbook of HotslotCpuFallback"),
                Step("reason NOT_READY", "no model is loaded: see the runbook of HotslotModelNotReady"),
                Step(
                    "reason DEADLINE_TOO_SHORT",
                    "callers give less time than an answer takes on an idle model: more time, or less in one request",
                ),
                Step(
                    "outcome expired",
                    "deadlines pass after the request was accepted: answers come late, see the runbook of "
                    "HotslotLatencyHigh",
                ),
            ),
            ("server.max_waiting_requests", "server.max_deadline_seconds", "callers[].rows_per_second"),
        ),
        Alert(
            "HotslotHeldMemoryHigh",
            Severity.WARNING,
            "hotslot_held_bytes / hotslot_max_held_bytes > 0.9",
            "5m",
            "{{ $labels.instance }} holds {{ $value | humanizePercentage }} of the memory that requests may have",
            "Beyond the limit a message is not read until there is room, and calls are refused.",
            _STATUS,
            (
                Step("many large pictures wait", "raise `server.max_waiting_bytes` if the machine has the memory"),
                Step("callers send slowly", "lower `server.upload_seconds`, after which a message is given up"),
            ),
            ("server.max_waiting_bytes", "server.upload_seconds"),
        ),
        Alert(
            "HotslotPoisonInputs",
            Severity.WARNING,
            "hotslot_poison_inputs > 0",
            "0m",
            "somebody sends inputs that end the runner of {{ $labels.model }}",
            "Each of these inputs ended two runner processes. They are refused at once now; other requests are not.",
            _EXPLAIN,
            (
                Step(
                    "an input crashes the engine",
                    "find the calls with reason POISON_INPUT in the log: their `request_id` leads to the caller",
                ),
            ),
            ("server.poison_seconds",),
        ),
        Alert(
            "HotslotLabelMixShifted",
            Severity.INFO,
            "max by (model) (abs(model_label:hotslot_answers:share1h - model_label:hotslot_answers:share1h offset 1d))"
            " > 0.2 and on (model) sum by (model) (increase(hotslot_answers_total[1h])) > 100",
            "15m",
            "{{ $labels.model }} gives other answers than at this hour yesterday",
            "The share of one answer has moved by more than a fifth. No request fails; health does not show it.",
            "hotslot updates history",
            (
                Step(
                    "a revision was committed since",
                    "`hotslot golden check` runs the golden set; `hotslot updates rollback REV` takes it back",
                ),
                Step(
                    "callers ask other questions",
                    "the golden set should have such questions too",
                ),
            ),
        ),
    ),
)
RUNNERS = AlertGroup(
    "hotslot-runners",
    "Runners and devices",
    (
        Alert(
            "HotslotRunnerDied",
            Severity.WARNING,
            "increase(hotslot_runner_deaths_total[15m]) > 0",
            "0m",
            "a runner of {{ $labels.model }} on {{ $labels.instance }} died",
            "Its requests were computed again elsewhere where possible. Each death costs a load.",
            _EXPLAIN,
            (
                Step("killed for memory", "`hotslot doctor` compares the memory plan with what is free"),
                Step("it was stuck and killed", "the reason names the limit; see `runner.limit_factor`"),
                Step("the engine crashed", "the log has its last lines as runner_printed"),
            ),
            ("runner.limit_factor", "runner.silence_seconds"),
        ),
        Alert(
            "HotslotLoadSlow",
            Severity.INFO,
            grew("instance_model_device:hotslot_slow_loads:count"),
            "0m",
            "a load of {{ $labels.model }} on {{ $labels.device }} took more than five seconds",
            "A restart, or the death of a runner without a standby, lasts as long as a load.",
            _EXPLAIN,
            (
                Step("the disk is slow or its cache is cold", "compare load_ended lines; a second load reads memory"),
                Step("the machine's CPUs are busy", "see the runbook of HotslotLoopLag"),
            ),
            ("runner.standby",),
        ),
        Alert(
            "HotslotCpuFallback",
            Severity.WARNING,
            "hotslot_cpu_fallback == 1",
            "1m",
            "{{ $labels.model }} runs on the CPU because {{ $labels.device }} ran out of memory",
            "It answers, but slowly. The updater tries the device again by itself.",
            _STATUS,
            (
                Step("another process uses the device", "`nvidia-smi` names it"),
                Step("the model does not fit", "use a larger device, or serve fewer models on it"),
                Step("the memory is free again", "`hotslot updates breaker reset device` tries it at once"),
            ),
            ("models[].cpu_fallback", "updater.device_first_seconds"),
        ),
        Alert(
            "HotslotGpuMemoryHigh",
            Severity.WARNING,
            f"hotslot_device_memory_used_bytes / hotslot_device_memory_total_bytes > {GPU_MEMORY.degraded}",
            "10m",
            "{{ $labels.device }} of {{ $labels.instance }} has {{ $value | humanizePercentage }} of its memory in use",
            "A second model may not fit beside the serving one, so updates are HELD.",
            "hotslot doctor",
            (
                Step("another process uses it", "`nvidia-smi` names it"),
                Step("two models share it", "give one of them another `device`"),
            ),
            ("models[].device",),
        ),
        Alert(
            "HotslotGpuMemoryFull",
            Severity.CRITICAL,
            f"hotslot_device_memory_used_bytes / hotslot_device_memory_total_bytes > {GPU_MEMORY.failed}",
            "2m",
            "{{ $labels.device }} of {{ $labels.instance }} is full",
            "The next large call may run out of memory; then the model moves to the CPU.",
            "hotslot doctor",
            (Step("another process uses it", "`nvidia-smi` names it; end it, or give the model another `device`"),),
            ("models[].device", "models[].cpu_fallback"),
        ),
    ),
)
