"""Alerts about updates and their messages."""

from cli.monitoring.alert import Alert, AlertGroup, Severity, Step, grew

_STATUS = "hotslot updates status"
_HISTORY = "hotslot updates history"
_EXPLAIN = "hotslot logs explain hotslot.log"
_DAY = 86400

UPDATES = AlertGroup(
    "hotslot-updates",
    "Updates",
    (
        Alert(
            "HotslotDownloadsFailing",
            Severity.WARNING,
            "hotslot_failed_downloads >= 3",
            "0m",
            "{{ $value }} downloads for {{ $labels.model }} failed in a row",
            "A new revision is on the hub and cannot be fetched. The serving model is not affected.",
            _EXPLAIN,
            (
                Step("the hub or the network fails", "`hotslot hub doctor MODEL` asks it, read only"),
                Step("the bytes are not what the hub lists", "a mirror or a proxy changes them; fetch directly"),
                Step("the token is refused", "renew the file that `updater.hub_token_file` names"),
            ),
            ("updater.hub_token_file", "updater.hub_stall_seconds", "updater.hub_min_bytes_a_second"),
        ),
        Alert(
            "HotslotHubSilent",
            Severity.WARNING,
            "time() - hotslot_hub_answered_timestamp_seconds > 900",
            "5m",
            "the hub has not answered for {{ $labels.model }} for {{ $value | humanizeDuration }}",
            "New revisions are not noticed. The serving model is not affected.",
            "hotslot hub doctor MODEL",
            (
                Step("the hub cannot be reached", "check address, DNS and proxies of this machine"),
                Step(
                    "the status says `HUB_DENIED` or `TOKEN_UNREADABLE`",
                    "the token has ended or is missing: renew the file that `updater.hub_token_file` names",
                ),
                Step("the breaker hub is open", "`hotslot updates breaker reset hub` asks at once"),
                Step("the loop of updates has stopped", "see the runbook of HotslotUpdateLoopStopped"),
            ),
            ("updater.hub_endpoint", "updater.hub_token_file", "updater.models.NAME.poll_seconds"),
        ),
        Alert(
            "HotslotListingOld",
            Severity.INFO,
            f"time() - hotslot_hub_listing_changed_timestamp_seconds > {30 * _DAY}",
            "1h",
            "the hub's listing for {{ $labels.model }} has not changed for {{ $value | humanizeDuration }}",
            "Nothing was published for a month, or a mirror that answers is no longer filled.",
            "hotslot hub doctor MODEL",
            (
                Step("a mirror is stale", "compare its listing with the original's"),
                Step("nothing was published", "raise the limit of this rule to the time between your releases"),
            ),
        ),
        Alert(
            "HotslotNothingFollowed",
            Severity.WARNING,
            "hotslot_hub_left_out_names >= hotslot_hub_names",
            "30m",
            "no revision of {{ $labels.model }} on the hub can be installed",
            "The repository has no names that are followed, or none at all.",
            "hotslot hub doctor MODEL",
            (
                Step("it has only a branch", '`follow = "branch:master"` follows its content'),
                Step("tags are named otherwise", "set `policy.pattern`"),
            ),
            ("updater.models.NAME.follow", "updater.models.NAME.policy.pattern"),
        ),
        Alert(
            "HotslotNoGoldenSet",
            Severity.WARNING,
            "hotslot_golden_set_configured == 0",
            "10m",
            "{{ $labels.model }} has no golden set",
            "Without one a new revision cannot be judged: each update waits as HELD for a person.",
            "hotslot doctor",
            (
                Step(
                    "none was recorded yet",
                    "`hotslot golden record FOLDER --model NAME` records answers; write the right ones as "
                    "expectations, name the folder as `golden` in the settings, and `hotslot reload` "
                    "(docs/how-to/golden-set.md). "
                    "`hotslot updates resume` tries what is HELD again",
                ),
            ),
            ("updater.models.NAME.golden",),
        ),
        Alert(
            "HotslotUpdateHeld",
            Severity.WARNING,
            'hotslot_update_stage{stage="HELD"} == 1',
            "30m",
            "an update of {{ $labels.model }} is HELD: its revision is not installed",
            "A revision was not installed, because an operator must decide, or because something is missing: memory, "
            "disk space, a golden set. What serves goes on. `hotslot updates status` says why, and what to do.",
            _STATUS,
            (
                Step(
                    "somebody must judge it: `APPROVAL`, `AGREEMENT`, `NOISE`, `SLOWER`, `CHANGED_ANSWERS`, `LABELS`",
                    "look at `hotslot updates show ID`, then `hotslot updates approve DIGEST`, or publish a better one",
                ),
                Step("`DISK_FULL`", "free room on the disk: it goes on by itself"),
                Step("any other reason", "`docs/troubleshooting.md` has each one, with what to do"),
            ),
        ),
        Alert(
            "HotslotUpdateFailed",
            Severity.WARNING,
            grew('hotslot_updates_total{outcome=~"REFUSED|ROLLED_BACK"}', "1h"),
            "0m",
            "an update of {{ $labels.model }} was {{ $labels.outcome }}: {{ $labels.reason }}",
            "The new revision does not serve. The one before does.",
            _HISTORY,
            (
                Step(
                    "REFUSED",
                    "it failed a check or the gate: `hotslot updates show ID` names it",
                ),
                Step(
                    "ROLLED_BACK",
                    "it failed requests on trial; the previous model, where there was one, answered them: "
                    "`hotslot logs explain` shows them",
                ),
            ),
        ),
        Alert(
            "HotslotRevisionQuarantined",
            Severity.INFO,
            "hotslot_quarantined_revisions > min_over_time(hotslot_quarantined_revisions[1h])",
            "0m",
            "a revision of {{ $labels.model }} was put into quarantine",
            "It is not tried again, under any name, until an operator takes it out.",
            _STATUS,
            (
                Step("the revision is bad", "publish a better one; nothing else is to be done"),
                Step("it was judged wrongly", "`hotslot updates unquarantine DIGEST` allows it again"),
            ),
        ),
        Alert(
            "HotslotRevisionRepublished",
            Severity.WARNING,
            "hotslot_republished_revisions > 0",
            "0m",
            "a known version of {{ $labels.model }} has other content on the hub",
            "A version must not change. It is not installed: somebody replaced files, or the hub was tampered with.",
            _STATUS,
            (
                Step(
                    "a mistake of the publisher",
                    "ask for a new version number; if the content is wanted, `hotslot updates update VERSION` takes it",
                ),
                Step("nobody knows of it", "treat the hub as compromised; `pin` the revision that you trust"),
            ),
            ("updater.models.NAME.policy.pin",),
        ),
        Alert(
            "HotslotUpdateLoopStopped",
            Severity.CRITICAL,
            "hotslot_update_loop_running == 0",
            "1m",
            "updates of {{ $labels.model }} have stopped",
            "The journal cannot be trusted, or the loop has failed. The server keeps serving what is committed.",
            _STATUS,
            (
                Step("the journal is damaged or lost", "`docs/lost-journal.md` says how to go on"),
                Step("the disk is full or read-only", "`hotslot doctor` shows it; it goes on when there is room"),
                Step(
                    "the status says that a loop has been starting for some time",
                    "a disk or mount does not answer; the loop goes on when it does",
                ),
            ),
        ),
        Alert(
            "HotslotBreakerOpen",
            Severity.WARNING,
            "hotslot_breaker_state == 2",
            "15m",
            "the breaker {{ $labels.breaker }} of {{ $labels.model }} is open",
            "After failures in a row, attempts pause for a growing time.",
            _STATUS,
            (
                Step(
                    "hub",
                    "five failures in a row open it, 30 s at first, about 15 minutes at most: see HotslotHubSilent",
                ),
                Step("activation", "several updates failed: `hotslot updates history`"),
                Step("device", "see the runbook of HotslotCpuFallback"),
                Step("the cause is gone", "`hotslot updates breaker reset NAME` tries at once"),
            ),
            ("updater.max_failures_an_hour", "updater.breaker_first_seconds"),
        ),
        Alert(
            "HotslotUpdatesPaused",
            Severity.INFO,
            "hotslot_updates_paused == 1",
            "1d",
            "updates of {{ $labels.model }} have been paused for a day",
            "Somebody paused them, or took a revision back, and nobody resumed them.",
            _STATUS,
            (Step("it was forgotten", "`hotslot updates resume` continues"),),
        ),
        Alert(
            "HotslotUpdaterErrors",
            Severity.WARNING,
            grew("hotslot_updater_errors_total"),
            "0m",
            "the updater reports {{ $labels.error }}",
            "The updater itself failed at something; the log line of the same name has the detail.",
            _EXPLAIN,
            (Step("the state folder cannot be written", "`hotslot doctor` shows disk and rights"),),
        ),
        Alert(
            "HotslotWebhookEventsLost",
            Severity.WARNING,
            grew("hotslot_webhook_lost_total"),
            "0m",
            "events for {{ $labels.hook }} were dropped: {{ $labels.reason }}",
            "A receiver of update events missed some for good.",
            _HISTORY,
            (
                Step("refused", "the receiver answers with an error that no repetition changes: read its log"),
                Step("overflow", "it was away for so long that a thousand events waited"),
            ),
            ("updater.webhooks[].url",),
        ),
        Alert(
            "HotslotWebhookQueueLong",
            Severity.WARNING,
            "hotslot_webhook_queued_events > 20",
            "15m",
            "{{ $value }} events wait for {{ $labels.hook }}",
            "The receiver is away or slow. Events are kept in the journal and sent when it answers.",
            _EXPLAIN,
            (Step("the receiver is down", "webhook_failed in the log has the reason"),),
            ("updater.webhooks[].timeout_seconds",),
        ),
    ),
)
