"""Reads hotslot's log lines, and knows what single events mean and what to do about them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from common.json_load import load_json

CALLERS = ("EntailmentService", "AddressTaggingService")  # services whose calls are callers'


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of the log."""

    at: datetime
    process: str
    level: str
    name: str
    fields: Mapping[str, Any]

    def text(self, key: str) -> str:
        """A field as text; empty if it is missing."""
        value = self.fields.get(key, "")
        return "" if value is None else str(value)

    def number(self, key: str) -> float:
        """A field as a number; 0 if it is none."""
        value = self.fields.get(key, 0)
        try:
            return float(value)
        except (TypeError, ValueError):
            return 0.0


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of an event, and what to do."""

    sentence: str  # with the names of fields in braces
    action: str = ""  # empty if nothing


# Events that are told by themselves. Those of updates, deaths, calls and starts are told in episodes.
MEANINGS: Mapping[str, Meaning] = {
    "access_warning": Meaning("{detail}", "protect the port, or listen on 127.0.0.1"),
    "alerts_lost": Meaning(
        "{notifications} alerts for {target} were given up: {detail}",
        "the chat refuses this text",
    ),
    "alerts_not_delivered": Meaning("{target} did not accept alerts: {reason} {detail}", "see docs/alert-relay.md"),
    "alerts_refused": Meaning(
        "a notification was refused: {detail}", "check Alertmanager's webhook_configs: docs/alert-relay.md"
    ),
    "background_task_failed": Meaning(
        "{task} has failed, and goes on; it failed {failures} times",
        "free descriptors, memory or disk; else report it with `hotslot doctor --archive FILE`",
    ),
    "background_task_recovered": Meaning("{task} works again after {failures} failures"),
    "boot_without_model": Meaning(
        "{model} starts without a model: {detail}",
        "import one, or wait for the first; a fault of the disk is tried again by itself",
    ),
    "breaker_opened": Meaning("{model}: {detail}", "`hotslot updates breaker reset NAME` tries at once"),
    "call_crashed": Meaning("{rpc} failed with an internal error", "report it with `hotslot doctor --archive FILE`"),
    "certificate_refused": Meaning("a new certificate cannot be used: {detail}", "the old one is used; fix the files"),
    "committed_load_failed": Meaning("{model}: the committed bundle did not load: {detail}", "`hotslot state verify`"),
    "cpu_fallback_file_unusable": Meaning("{detail}", "delete the file; it is written again"),
    "cuda_graphs_unused": Meaning("a GPU's calls are launched kernel by kernel: {reason}", "look at free GPU memory"),
    "drain_begun": Meaning("the server was told to stop and drains"),
    "fork_server_failed": Meaning("runners start as programs: {detail}", "docs/explanation/decisions/fork-server.md"),
    "hub_unanswered": Meaning("{model}: the hub did not answer: {detail}", "`hotslot hub doctor MODEL` asks it"),
    "journal_lost": Meaning("{detail}", "docs/lost-journal.md"),
    "journal_not_written": Meaning("the journal cannot be written: {detail}", "free room on the disk"),
    "journal_unreadable": Meaning("{detail}", "docs/lost-journal.md"),
    "kernels_unused": Meaning(
        "torch computes what compiled kernels would: {reason}", "answers are the same, and slower"
    ),
    "listener_failed": Meaning("a port cannot be opened", "another program has it; `hotslot config check` lists them"),
    "load_failed": Meaning(
        "{model}: a load of {revision} on {device} failed: {reason} {detail}", "broken bundle, or too little memory"
    ),
    "log_lines_dropped": Meaning("{lines} log lines are missing here", "what reads the log is too slow"),
    "loop_crashed": Meaning("{model}: the update loop failed, and goes on in {retry_in_seconds} s", "report it"),
    "model_given_up": Meaning(
        "{model}: its runner failed {failures} times: {detail}",
        "find the cause in the lines before; `hotslot updates rollback REV` only if it is the revision's",
    ),
    "model_recovered": Meaning("{model}: its runner works again"),
    "overload_begun": Meaning("{model} is offered more than it serves", "add servers, or limit callers"),
    "overload_ended": Meaning("{model} is no longer overloaded"),
    "process_given_up": Meaning("{program} is no longer started", "the lines before say why it ended"),
    "products_unused": Meaning(
        "torch multiplies in {dtype}, not oneDNN: {reason}", "answers are the same, and slower; report it"
    ),
    "revision_republished": Meaning("{model}: {detail}", "ask who published it; it is not installed"),
    "runner_forks_paused": Meaning("runners start as programs for {pause_seconds} s: {detail}", "look at free memory"),
    "server_refused": Meaning("the server cannot start: {detail}", "`hotslot config check`"),
    "settings_invalid": Meaning("{detail}", "`hotslot config check`"),
    "staging_failed": Meaning("{model}: a download failed: {detail}", "it is retried; `hotslot hub doctor MODEL`"),
    "step_failed": Meaning("{model}: a step of an update failed: {detail}", "it is retried"),
    "tokens_refused": Meaning("changed tokens cannot be used: {detail}", "the old ones stay in use; fix the file"),
    "unresponsive_process_killed": Meaning("{program} did not respond and was restarted", "was the machine frozen?"),
    "unresponsive_process_given_up": Meaning("{program} does not respond", "restart the stack"),
    "updater_refused": Meaning("the updater cannot start: {detail}", "`hotslot config check`"),
    "webhook_event_refused": Meaning("{hook} refused an event for good: {reason}", "read the receiver's log"),
    "webhook_events_dropped": Meaning("{count} events for {hook} were dropped", "the receiver was away too long"),
    "webhook_failed": Meaning("{hook} did not accept an event: {reason}", "it is retried"),
}


@dataclass(slots=True)
class Reading:
    """The number of lines of a log, and of those that are no events."""

    lines: int = 0
    others: int = 0  # lines that are no events: of libraries, tracebacks, other programs


def read_events(lines: Iterable[str], reading: Reading) -> Iterator[LogEvent]:
    """The events of a log in their order; other lines are counted."""
    for line in lines:
        reading.lines += 1
        event = _parse(line)
        if event is None:
            reading.others += 1
        else:
            yield event


def describe(event: LogEvent) -> tuple[str, str]:
    """Sentence and action of an event that is told by itself; both empty if it is not."""
    meaning = MEANINGS.get(event.name)
    if meaning is None:
        if event.level != "error":
            return "", ""
        return " ".join(filter(None, (event.name.replace("_", " "), event.text("detail")))), "see the line itself"
    sentence = meaning.sentence.format_map(_Fields(event.fields))
    return " ".join(sentence.split()).rstrip(": "), meaning.action


class _Fields(dict[str, Any]):
    """Fields for a sentence; a missing one is empty."""

    def __missing__(self, key: str) -> str:
        return ""


def _parse(line: str) -> LogEvent | None:
    begin = line.find("{")  # after what a container runtime or supervisord puts before it
    if begin < 0:
        return None
    try:
        row = load_json(line[begin:])
        at = datetime.fromisoformat(row.pop("at"))
        return LogEvent(at, str(row.pop("process", "")), str(row.pop("level", "")), str(row.pop("event")), row)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
