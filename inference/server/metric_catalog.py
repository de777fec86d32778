"""The metrics of the server, as data. A number is exported once: what a sum or a rate can give has no metric."""

from common.metric_catalog import MetricCatalog, MetricSpec, counter, gauge, histogram
from common.process_metrics import PROCESS_LABELS, PROCESS_METRICS
from common.settings_reload import SETTINGS_METRICS

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CALL = ("grpc_type", "grpc_service", "grpc_method")
_REVISION = ("model", "revision")
_RUNNER = ("model", "slot")

# Calls: names and labels of go-grpc-prometheus, so that its dashboards work.
CALLS_STARTED = counter("grpc_server_started_total", "Calls started.", *_CALL, use="Its rate is the load in calls.")
CALLS_HANDLED = counter(
    "grpc_server_handled_total",
    "Calls completed, by code.",
    *_CALL,
    "grpc_code",
    use="Share of codes other than OK; a stream is one call, see hotslot_items_total for its items.",
)
MESSAGES_RECEIVED = counter(
    "grpc_server_msg_received_total", "Messages received; for a stream its items.", *_CALL, use="Load of streams."
)
MESSAGES_SENT = counter(
    "grpc_server_msg_sent_total", "Messages sent; for a stream its results.", *_CALL, use="Load of streams."
)
CALL_SECONDS = histogram(
    "grpc_server_handling_seconds",
    "Duration of calls.",
    *_CALL,
    buckets=_SECONDS,
    use="Latency of unary calls; a stream lasts as long as its caller wants.",
)

# Items.
ITEMS = counter(
    "hotslot_items_total",
    "Items, counted once, at their outcome: unary requests (oversized: cancelled), stream items, malformed messages.",
    *_REVISION,
    "device",
    "outcome",
    "reason",
    use='Alert on outcome="failed" (a fault of ours), and on a lasting share of refused or expired (too much load).',
)
ANSWERS = counter(
    "hotslot_answers_total",
    "Statements answered, by answer; parts of addresses found, by kind.",
    *_REVISION,
    "label",
    use="A new revision that answers in other shares than the one before judges differently.",
)
ITEM_SECONDS = histogram(
    "hotslot_item_seconds",
    "Time of answered items, by stage.",
    *_REVISION,
    "stage",
    buckets=_SECONDS,
    use="Latency of answers, and where it comes from: queue (load), prepare (pictures), compute (model).",
)
UNANSWERED_REQUESTS = gauge(
    "hotslot_unanswered_requests",
    "Accepted items without an outcome: waiting, or on their way through a runner.",
    "model",
    use="Where those of unary requests reach max_waiting_requests, further ones are refused; items of streams are not.",
)
WAITING_REQUESTS = gauge(
    "hotslot_waiting_requests",
    "Items in the queue: accepted, and not sent to a runner.",
    "model",
    "priority",
    use="More than a few for long: the model is at its capacity.",
)
WAITING_ROWS = gauge(
    "hotslot_waiting_rows",
    "Device rows of the items in the queue: one a statement, one or more an address, by its length.",
    "model",
    "priority",
    use="The work that waits; times the seconds of a row it is the wait.",
)
OVERLOADED = gauge(
    "hotslot_overloaded",
    "1 while a model is offered more than it serves, so that its queue is kept short, else 0.",
    "model",
    use="Alert if it lasts: items are refused. The log has overload_begun and overload_ended.",
)
POISON_INPUTS = gauge(
    "hotslot_poison_inputs",
    "Inputs that are refused now, because each ended two runner processes (at most 256).",
    "model",
    use="Above 0: somebody sends inputs that crash the engine. The log has the requests: reason POISON_INPUT.",
)
HELD_BYTES = gauge(
    "hotslot_held_bytes",
    "Memory of requests that are received, waiting or running, of open calls and of connections.",
    use="Near hotslot_max_held_bytes, requests are refused.",
)
MAX_HELD_BYTES = gauge(
    "hotslot_max_held_bytes", "Limit of hotslot_held_bytes: max_waiting_bytes.", use="See hotslot_held_bytes."
)
DEVICE_CALL_ITEMS = histogram(
    "hotslot_device_call_items",
    "Items per device call.",
    *_REVISION,
    buckets=_SIZES,
    use="How well the device is used: a call of several items costs less than several calls.",
)
DEVICE_CALL_ROWS = histogram(
    "hotslot_device_call_rows",
    "Rows per device call.",
    *_REVISION,
    buckets=_SIZES,
    use="See hotslot_device_call_items. Its sum is the number of rows computed.",
)
DEVICE_CALL_SECONDS = histogram(
    "hotslot_device_call_seconds",
    "Duration of device calls.",
    *_REVISION,
    buckets=_SECONDS,
    use="The rate of its sum is the share of time that the device computes; an interactive item waits for one call.",
)

# Revisions, slots and trials.
SLOT_INFO = gauge(
    "hotslot_slot_info",
    "1; state, role and revision of each slot are its labels.",
    *_RUNNER,
    "state",
    "role",
    "revision",
    use='Which revision serves: role "ACTIVE" or "TRIAL", state "LOADED".',
)
SWAPS = counter(
    "hotslot_swaps_total",
    "Changes of the active slot and ends of trials.",
    "model",
    "change",
    use='"trial_rolled_back", "trial_lease_expired", "gap_lease_expired" and "gap_abandoned" are updates that failed.',
)
HANDOVERS = counter(
    "hotslot_handovers_total",
    "Items handed over from a trial to the previous slot; hotslot_items_total counts them where they end.",
    *_REVISION,
    "reason",
    use="Requests on which a trial fails; the previous model answers them.",
)
COMPARED_ANSWERS = counter(
    "hotslot_compared_answers_total",
    "Answers that a second slot has given too, for comparison: to statements, about addresses.",
    *_REVISION,
    "result",
    use="The share of different ones tells whether a new revision judges as the one before.",
)
COPIES_DROPPED = counter(
    "hotslot_copies_dropped_total",
    "Requests of the sample that were not compared.",
    *_REVISION,
    "reason",
    use="Many for BUSY: the model has no idle time for a comparison, which then takes longer; REPEATED: few differ.",
)
CANARY_PERCENT = gauge(
    "hotslot_canary_percent",
    "Percentage of the requests that the revision on trial gets; 0 without a trial.",
    "model",
    use="Below 100 for long: a rollout waits for a verdict, or for a person.",
)
LOAD_SECONDS = histogram(
    "hotslot_load_seconds", "Duration of loads.", "model", "device", buckets=_SECONDS, use="How long a restart takes."
)
LOAD_FAILURES = counter(
    "hotslot_load_failures_total",
    "Loads that failed.",
    "model",
    "device",
    "reason",
    use="A broken bundle, or too little memory.",
)
RUNNER_DEATHS = counter(
    "hotslot_runner_deaths_total",
    "Runner processes that ended unexpectedly.",
    *_RUNNER,
    use="Alert on a rate: each one costs a load.",
)
CPU_FALLBACKS = counter(
    "hotslot_cpu_fallbacks_total",
    "CPU fallbacks taken.",
    "model",
    "device",
    "fallback_device",
    use="How often the device ran out of memory.",
)
CPU_FALLBACK = gauge(
    "hotslot_cpu_fallback",
    "1 while a model runs on the CPU because its device ran out of memory.",
    "model",
    "device",
    "fallback_device",
    use="Alert on 1: the model is slow.",
)

# Runner processes and devices.
RUNNER_CPU = counter(
    "hotslot_runner_cpu_seconds_total",
    "CPU time of the slot's runner process; starts at 0 with each process.",
    *_RUNNER,
    use="Its rate is the number of CPUs that the model uses.",
)
RUNNER_MEMORY = gauge(
    "hotslot_runner_resident_memory_bytes",
    "Resident memory of the slot's runner process; about 300 MB that forked runners share count in each of them.",
    *_RUNNER,
    use="Two slots are loaded during an update: the machine needs memory for both.",
)
RUNNER_FILES = gauge(
    "hotslot_runner_open_fds",
    "Open file descriptors of the slot's runner process.",
    *_RUNNER,
    use="Alert when it grows without end.",
)
RUNNER_THREADS = gauge(
    "hotslot_runner_threads", "Threads of the slot's runner process.", *_RUNNER, use="Alert when it grows without end."
)
FORK_SERVER_MEMORY = gauge(
    "hotslot_fork_server_resident_memory_bytes", "Resident memory of the fork server.", use="Part of the memory plan."
)
FORK_SERVER_READY = gauge(
    "hotslot_fork_server_ready",
    "1 while the fork server answers, 0 while it starts or cannot work; absent with runner.fork_server = false.",
    use="0 for long: runners start as programs, so that an update and the death of a runner take seconds more.",
)
FORK_SERVER_FAILURES = counter(
    "hotslot_fork_server_failures_total", "Ends of the fork server.", use="fork_server_failed in the log has reasons."
)
COMPILED_KERNELS = gauge(
    "hotslot_compiled_kernels",
    "1 if kernels compiled for the processor compute, 0 if torch instead; absent for models without a use for them.",
    *_RUNNER,
    "instructions",
    use="0: the model is slower than it could be; kernels_unused in the log has the reason.",
)
PICTURES = counter(
    "hotslot_pictures_total",
    "Pictures that the slot's runner has decoded or refused; starts at 0 with each process.",
    *_RUNNER,
    "format",
    "picture_outcome",
    use="Its rate by picture_outcome is what callers send that cannot be decoded, and why.",
)
PICTURE_SECONDS = counter(
    "hotslot_picture_seconds_total",
    "Time that decoding these pictures took, with the wait for a decoder process; starts at 0 with each process.",
    *_RUNNER,
    "format",
    "picture_outcome",
    use="Its rate divided by that of hotslot_pictures_total is the mean time of a picture.",
)
QUEUED_PREPARATIONS = gauge(
    "hotslot_queued_preparations",
    "Items in the slot's runner that wait for a place in which their picture is decoded.",
    *_RUNNER,
    use="More than a few for long: decoding is slower than the device; see prepare_processes.",
)
PICTURE_BYTES = gauge(
    "hotslot_picture_bytes",
    "Memory that the pictures being decoded take, by their estimates; quick ones are not counted.",
    *_RUNNER,
    use="Near the limit on all pictures together, large pictures wait for each other.",
)
DEVICE_MEMORY_USED = gauge(
    "hotslot_device_memory_used_bytes", "Memory in use on a GPU, by all processes.", "device", use="See its total."
)
DEVICE_MEMORY_TOTAL = gauge(
    "hotslot_device_memory_total_bytes",
    "Memory of a GPU.",
    "device",
    use="Without room for a second model, an update cannot be tried beside the serving one.",
)

# The machine, or the container that limits it.
MEMORY_USED = gauge(
    "hotslot_memory_used_bytes",
    "Memory in use on the machine, or in the container that limits it; caches do not count.",
    use="Above 90 % of its total health is FAILED: the kernel may kill a runner.",
)
MEMORY_TOTAL = gauge(
    "hotslot_memory_total_bytes",
    "Memory of the machine, or the container's limit.",
    use="See hotslot_memory_used_bytes.",
)
DISK_FREE = gauge(
    "hotslot_disk_free_bytes",
    "Free space of the file system with the state folder.",
    use="Alert below a tenth of its total: an update needs room for its download and its bundle.",
)
DISK_TOTAL = gauge(
    "hotslot_disk_total_bytes",
    "Size of the file system with the state folder.",
    use="See hotslot_disk_free_bytes.",
)

# The server process.
READY = gauge(
    "hotslot_ready",
    "1 while the health service reports SERVING for this name, else 0.",
    "service",
    use="Alert on 0 of a model's name.",
)
MODEL_GIVEN_UP = gauge(
    "hotslot_model_given_up",
    "1 while the model's runner has failed as runner.respawn_give_up says, else 0; it is still restarted.",
    "model",
    use="Alert on 1: the model will not recover by itself, or not soon.",
)
DRAINING = gauge("hotslot_draining", "1 while the server drains, else 0.", use="1 for long: callers do not leave.")
LOOP_LAG = gauge(
    "hotslot_loop_lag_seconds",
    "Longest event-loop lag of the last minute.",
    use="Above 0.5 health is DEGRADED: the machine's CPUs are too busy.",
)
LOOP_TASKS = gauge(
    "hotslot_loop_tasks",
    "Tasks of the event loop, counted four times a second.",
    use="Grows with calls and connections; alert when it grows without end.",
)
CERTIFICATE_EXPIRY = gauge(
    "hotslot_certificate_expiry_timestamp_seconds",
    "End of the validity of the gRPC port's certificate, in seconds since 1970; absent without TLS.",
    use="Alert when it is less than a week after time().",
)
TOKENS = gauge(
    "hotslot_tokens", "Bearer tokens that are accepted; absent if callers need none.", use="0: every caller is refused."
)
RELOAD_SUCCESSFUL = gauge(
    "hotslot_last_reload_successful",
    "1 while the files are in use as they are now, 0 while the last good content is used instead.",
    "file",
    use="Alert on 0: the log has certificate_refused or tokens_refused with the reason.",
)
LOG_LINES_DROPPED = counter(
    "hotslot_log_lines_dropped_total",
    "Log lines dropped because they were not read in time.",
    use="More than 0: the log is incomplete.",
)

_METRICS: tuple[MetricSpec, ...] = (
    *(CALLS_STARTED, CALLS_HANDLED, MESSAGES_RECEIVED, MESSAGES_SENT, CALL_SECONDS),
    *(ITEMS, ANSWERS, ITEM_SECONDS, UNANSWERED_REQUESTS, WAITING_REQUESTS, WAITING_ROWS, OVERLOADED),
    *(POISON_INPUTS, HELD_BYTES, MAX_HELD_BYTES, DEVICE_CALL_ITEMS, DEVICE_CALL_ROWS, DEVICE_CALL_SECONDS),
    *(COMPARED_ANSWERS, COPIES_DROPPED, CANARY_PERCENT),
    *(SLOT_INFO, SWAPS, HANDOVERS, LOAD_SECONDS, LOAD_FAILURES, RUNNER_DEATHS, CPU_FALLBACKS, CPU_FALLBACK),
    *(FORK_SERVER_MEMORY, FORK_SERVER_READY, FORK_SERVER_FAILURES, COMPILED_KERNELS),
    *(RUNNER_CPU, RUNNER_MEMORY, RUNNER_FILES, RUNNER_THREADS, PICTURES, PICTURE_SECONDS),
    *(QUEUED_PREPARATIONS, PICTURE_BYTES, DEVICE_MEMORY_USED, DEVICE_MEMORY_TOTAL),
    *(MEMORY_USED, MEMORY_TOTAL, DISK_FREE, DISK_TOTAL),
    *(READY, MODEL_GIVEN_UP, DRAINING, LOOP_LAG, LOOP_TASKS, LOG_LINES_DROPPED),
    *(CERTIFICATE_EXPIRY, TOKENS, RELOAD_SUCCESSFUL),
    *SETTINGS_METRICS,
    *PROCESS_METRICS,
)
_LABELS = {
    "grpc_type": '"unary", "server_stream" or "bidi_stream".',
    "grpc_service": "Full name of the service. Calls of unknown services and methods are not counted.",
    "grpc_method": "Name of the method.",
    "grpc_code": 'As in go-grpc-prometheus: "OK", "InvalidArgument", …',
    "model": "Name in hotslot.toml; empty for an item that named none of them.",
    "revision": (
        "The one that answered or failed the item, or had it last; empty if the item was not accepted. Series of the "
        "last 32 revisions and of those in slots are kept."
    ),
    "device": '"cpu", "cuda:0", …; of an item as `revision`.',
    "outcome": (
        '"answered"; "refused" (valid, but turned away: overloaded, no memory on the device, not ready, draining); '
        '"invalid" (wrong input, unknown model); "expired" (its deadline had passed on arrival, or passed before the '
        'answer); "cancelled" (its caller has cancelled it, or is gone); "failed" (by the server, runner or engine).'
    ),
    "reason": (
        "The `reason` of the error's ErrorInfo, for example QUEUE_FULL; CANCELLED if the caller is gone; empty for an "
        "answer. Of a handover: why the trial failed the item, TOO_SLOW included. Of a copy: BUSY, BUDGET, MEMORY, "
        "SLOT_DOWN, ENDED or REPEATED, as Comparison.dropped in control.proto."
    ),
    "label": '"yes", "no" or "maybe".',
    "format": '"jpeg", "png", "webp" or "other", by the first bytes.',
    "picture_outcome": (
        '"DECODED"; or why it was not: a reason of docs/error-reasons.md such as IMAGE_UNREADABLE or IMAGE_TOO_COSTLY.'
    ),
    "result": '"equal" or "different".',
    "stage": '"queue" (until it was sent to the runner), "prepare" (decoding), "compute" (device), "total".',
    "priority": '"interactive" or "bulk".',
    "slot": '"a" or "b".',
    "state": "As SlotState in status.proto.",
    "role": "As SlotRole in status.proto.",
    "change": "As the log event: slot_activated, trial_committed, trial_rolled_back, gap_lease_expired, …",
    "fallback_device": '"cpu".',
    "instructions": 'Of compiled kernels: "AVX2" or "AVX512"; "none" if torch computes.',
    "service": 'Name in the health service: a model, a gRPC service, "liveness"; empty for the whole server.',
    "file": '"certificate" (with its key and client CAs) or "tokens".',
    "le": "Upper bound of a histogram's bucket.",
    **PROCESS_LABELS,
}
CATALOG = MetricCatalog("Server", "`server.metrics_port`", _LABELS, _METRICS)
