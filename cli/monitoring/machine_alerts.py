"""Alerts about the machine, and about who may call."""

from cli.monitoring.alert import Alert, AlertGroup, Severity, Step
from common.usage_limits import DESCRIPTORS, DISK, MEMORY

_DOCTOR = "hotslot doctor"
_STATUS = "hotslot status"
_EXPLAIN = "hotslot logs explain hotslot.log"
_DISK = "hotslot_disk_free_bytes / hotslot_disk_total_bytes"
_DAY = 86400

MACHINE = AlertGroup(
    "hotslot-machine",
    "The machine",
    (
        Alert(
            "HotslotLoopLag",
            Severity.WARNING,
            "hotslot_loop_lag_seconds > 0.5",
            "2m",
            "the event loop of {{ $labels.instance }} is {{ $value | humanizeDuration }} late",
            "The server gets too little CPU time: every call waits, and liveness checks may fail.",
            _DOCTOR,
            (
                Step("others use the CPUs", "give the container the CPUs that `runner.threads` uses and one more"),
                Step("compute threads take all CPUs", "set `runner.threads` to one less than the usable CPUs"),
            ),
            ("runner.threads",),
        ),
        Alert(
            "HotslotLogLinesDropped",
            Severity.WARNING,
            "increase(hotslot_log_lines_dropped_total[15m]) > 0",
            "0m",
            "{{ $labels.instance }} drops log lines",
            "The log is incomplete, because what reads it is too slow. Serving never waits for it.",
            _STATUS,
            (
                Step("the collector is stuck", "restart what reads the container's output"),
                Step("the disk behind it is full", "see the runbook of HotslotDiskLow"),
                Step("there are many calls", 'set `logs.level = "warning"`: then calls are not logged'),
            ),
            ("logs.level",),
        ),
        Alert(
            "HotslotDiskLow",
            Severity.WARNING,
            f"{_DISK} < {1 - DISK.degraded:.2g}",
            "5m",
            "{{ $value | humanizePercentage }} of the state folder's disk is free on {{ $labels.instance }}",
            "An update that does not fit is HELD, and goes on by itself when there is room. Serving needs no disk.",
            _DOCTOR,
            (
                Step("old bundles take the room", "lower `updater.retained_bytes`, then `hotslot reload`"),
                Step("something else fills the disk", "give `state_dir` a disk of its own"),
            ),
            ("updater.retained_bytes", "updater.reserve_bytes", "state_dir"),
        ),
        Alert(
            "HotslotDiskFull",
            Severity.CRITICAL,
            f"{_DISK} < {1 - DISK.failed:.2g}",
            "1m",
            "{{ $value | humanizePercentage }} of the state folder's disk is free on {{ $labels.instance }}",
            "Less than 2 % is free. The server keeps serving. An update that would leave less than "
            "`updater.reserve_bytes` waits as HELD; when nothing is left, the journal cannot be written, and no update "
            "and no command, a rollback included, is carried out.",
            _DOCTOR,
            (
                Step("something fills the disk", "free room; updates go on by themselves"),
                Step("old bundles take the room", "lower `updater.retained_bytes`, then `hotslot reload`"),
            ),
            ("updater.reserve_bytes", "updater.retained_bytes"),
        ),
        Alert(
            "HotslotMemoryHigh",
            Severity.CRITICAL,
            f"hotslot_memory_used_bytes / hotslot_memory_total_bytes > {MEMORY.failed}",
            "2m",
            "{{ $value | humanizePercentage }} of the memory is in use on {{ $labels.instance }}",
            "The kernel may kill a runner or the server.",
            _DOCTOR,
            (
                Step("two models are loaded", "an update needs memory for both: raise the limit of the container"),
                Step("large pictures are decoded at once", "lower `runner.prepare_memory_bytes`"),
            ),
            ("runner.prepare_memory_bytes", "server.max_waiting_bytes"),
        ),
        Alert(
            "HotslotDescriptorsHigh",
            Severity.WARNING,
            f'process_open_fds{{job=~"hotslot.*"}} / process_max_fds{{job=~"hotslot.*"}} > {DESCRIPTORS.degraded}',
            "5m",
            "{{ $labels.job }} on {{ $labels.instance }} has used {{ $value | humanizePercentage }} of its descriptors",
            "At the limit, connections are refused.",
            _DOCTOR,
            (
                Step("there are many connections", "raise the limit (`ulimit -n`, LimitNOFILE)"),
                Step("connections are not closed", "lower `server.max_connection_idle_seconds`"),
            ),
            ("server.max_connection_idle_seconds",),
        ),
        Alert(
            "HotslotDrainStuck",
            Severity.WARNING,
            "hotslot_draining == 1",
            "10m",
            "{{ $labels.instance }} has been draining for ten minutes",
            "It was told to stop and accepts no requests, but does not end.",
            _EXPLAIN,
            (
                Step("requests are unanswered", "they are cut off after `server.grace_seconds`; else kill the stack"),
                Step("a runner hangs", "it is killed after `runner.retire_seconds`; else kill the stack"),
            ),
            ("server.grace_seconds", "watchdog.stop_seconds"),
        ),
    ),
)
ACCESS = AlertGroup(
    "hotslot-access",
    "Who may call",
    (
        Alert(
            "HotslotCertificateEnds",
            Severity.WARNING,
            f"hotslot_certificate_expiry_timestamp_seconds - time() < {7 * _DAY}",
            "1h",
            "the certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
            "Once it has ended, clients refuse to connect.",
            _DOCTOR,
            (Step("it was not renewed", "replace the files: they are read again without a restart"),),
            ("tls.certificate_file", "tls.key_file"),
        ),
        Alert(
            "HotslotCertificateEnded",
            Severity.CRITICAL,
            f"hotslot_certificate_expiry_timestamp_seconds - time() < {_DAY}",
            "0m",
            "the certificate of {{ $labels.instance }} ends within a day, or has ended",
            "Once it has ended, clients refuse to connect. Open connections go on.",
            _DOCTOR,
            (Step("it was not renewed", "replace the files: they are read again without a restart"),),
            ("tls.certificate_file", "tls.key_file"),
        ),
        Alert(
            "HotslotReloadFailed",
            Severity.WARNING,
            "hotslot_last_reload_successful == 0",
            "5m",
            "changed {{ $labels.file }} files of {{ $labels.instance }} cannot be used",
            "The certificates or tokens from before stay in use; a certificate until it ends."
            " A refused settings file is no case of this alert: `hotslot status` shows it.",
            _DOCTOR,
            (
                Step(
                    "the files do not fit each other, or cannot be read",
                    "the log says why: certificate_refused or tokens_refused",
                ),
            ),
            ("tls.certificate_file", "server.tokens_file"),
        ),
        Alert(
            "HotslotNoTokens",
            Severity.CRITICAL,
            "hotslot_tokens == 0",
            "1m",
            "{{ $labels.instance }} accepts no token, so every caller is refused",
            "The tokens file is empty.",
            _DOCTOR,
            (Step("all tokens were revoked", "`hotslot token new NAME` makes one"),),
            ("server.tokens_file",),
        ),
        Alert(
            "HotslotAlertsNotDelivered",
            Severity.CRITICAL,
            "increase(hotslot_alert_relay_failures_total[5m]) > 0",
            "10m",
            "alerts do not reach {{ $labels.target }}: {{ $labels.reason }}",
            "`hotslot alert-relay` cannot deliver. What it has accepted waits on disk until the chat answers.",
            "hotslot logs explain relay.log",
            (
                Step("RATE_LIMITED", "the chat accepts few messages a minute: group alerts in Alertmanager"),
                Step("REFUSED", "the robot's key, keyword or signature is wrong: the log has the chat's code"),
                Step("UNREACHABLE or TIMEOUT", "check this machine's way to the chat's servers"),
                Step("you read this in the chat", "it is back; alerts about the relay need a second way to people"),
            ),
        ),
    ),
)
