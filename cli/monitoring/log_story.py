"""Tells a log as a story: starts, updates, deaths, swaps, overload, errors and slow calls, each with times. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cli.monitoring.log_calls import CallSummary, explain_slow
from cli.monitoring.log_events import LogEvent, Reading, describe, read_events

_STEPS = {
    "revision_staged": "fetched",
    "bundle_sealed": "verified and sealed",
    "candidate_loaded": "loaded",
    "gate_passed": "gate passed",
    "trial_began": "on trial",
    "trial_kept": "trial passed",
    "candidate_refused": "refused",
    "rollback_began": "rolling back",
    "update_held": "HELD",
}
_ENDS = {
    "update_committed": ("committed", ""),
    "update_refused": ("refused before any caller met it", "`hotslot updates show {id}` has the evidence"),
    "update_rolled_back": ("rolled back", "`hotslot updates show {id}` has the evidence"),
    "update_abandoned": ("abandoned", "it is tried again"),
    "update_held": ("HELD for a person", "`hotslot updates show {id}` says what to do"),
}
_DEATHS = {
    "SIGKILL": "killed from outside: usually the kernel, for memory (`dmesg`), or an operator",
    "SIGSEGV": "a crash in native code: report it with the last lines of the runner",
    "SIGABRT": "a crash in native code: report it with the last lines of the runner",
    "SIGTERM": "somebody ended it from outside",
    "stuck": "it took longer than its limit and was killed; see runner.limit_factor",
    "silent": "it sent no heartbeat: the machine was overloaded or frozen",
}
_REPEATED_SECONDS = 60.0  # the same sentence within this time is told once, with a number
_PROGRAMS = {"server_started": "server", "updater_started": "updater", "alert_relay_started": "alert relay"}
_TAKEN_BACK = ("trial_rolled_back", "trial_lease_expired", "gap_lease_expired", "gap_abandoned")


@dataclass(slots=True)
class Episode:
    """Something that happened, with its begin and end."""

    begins: datetime
    title: str
    ends: datetime | None = None  # None: an instant, or not ended in this log
    details: list[str] = field(default_factory=list)
    action: str = ""
    is_bad: bool = False
    times: int = 1

    @property
    def seconds(self) -> float:
        """How long it lasted; 0 for an instant."""
        return 0.0 if self.ends is None else (self.ends - self.begins).total_seconds()


@dataclass(slots=True)
class Story:
    """A whole log."""

    reading: Reading
    calls: CallSummary
    episodes: list[Episode]
    begins: datetime | None = None
    ends: datetime | None = None


def tell_story(lines: Iterable[str]) -> Story:
    """Read a log, whose lines may come from several processes."""
    reading, teller = Reading(), _Teller()
    for event in read_events(lines, reading):
        teller.hear(event)
    teller.add_bursts()
    episodes = sorted(teller.episodes, key=lambda episode: episode.begins)
    return Story(reading, teller.calls, episodes, teller.begins, teller.ends)


def find_cause(story: Story, event: LogEvent) -> str:
    """Why a call was slow: what happened meanwhile, else where its time went."""
    began = event.at - timedelta(seconds=event.number("seconds"))
    for episode in story.episodes:
        if episode.is_bad and began <= (episode.ends or episode.begins) and event.at >= episode.begins:
            return f"{episode.begins:%H:%M:%S} {episode.title}"
    return explain_slow(event)[1]


class _Teller:
    """Collects episodes while events pass."""

    def __init__(self) -> None:
        self.calls = CallSummary()
        self.episodes: list[Episode] = []
        self.begins: datetime | None = None
        self.ends: datetime | None = None
        self._updates: dict[str, Episode] = {}  # by update id
        self._deaths: dict[str, Episode] = {}  # by model, until it serves again
        self._open: dict[tuple[str, str], Episode] = {}  # overload, fallback, exits; by kind and subject
        self._said: dict[str, Episode] = {}  # by sentence

    def hear(self, event: LogEvent) -> None:
        """Take an event into account."""
        self.begins = event.at if self.begins is None else min(self.begins, event.at)
        self.ends = event.at if self.ends is None else max(self.ends, event.at)
        if event.name == "call_ended":
            self.calls.add(event)
        elif event.text("update_id"):
            self._hear_update(event)
        elif not self._hear_process(event) and not self._hear_model(event):
            sentence, action = describe(event)
            if sentence:
                self._say(event, sentence, action, is_bad=event.level in ("warning", "error"))

    def add_bursts(self) -> None:
        """Tell the bursts of failed calls."""
        for burst in self.calls.bursts:
            named = f"{burst.code} {burst.reason}".strip()
            title = f"{burst.calls} calls ended with {named}"
            self.episodes.append(Episode(burst.begins, title, burst.ends, is_bad=True))

    def _hear_update(self, event: LogEvent) -> None:
        key = event.text("update_id")
        episode = self._updates.get(key)
        if episode is None:
            title = f"{event.text('model')}: update to {event.text('revision')}"
            episode = self._updates[key] = self._add(Episode(event.at, title))
        since = (event.at - episode.begins).total_seconds()
        step, detail = _STEPS.get(event.name), event.text("detail")
        if step:
            episode.details.append(f"{since:.1f} s: {step}")
        elif event.level in ("warning", "error") or event.name in ("staging_failed", "content_mismatched"):
            episode.details.append(f"{since:.1f} s: {event.name.replace('_', ' ')}: {detail}")
        if event.name in _ENDS:
            word, action = _ENDS[event.name]
            episode.ends = event.at
            episode.title = f"{event.text('model')}: update to {event.text('revision')} {word}: {detail}"
            episode.action = action.format(id=key)
            episode.is_bad = event.name in ("update_refused", "update_rolled_back", "update_held")

    def _hear_process(self, event: LogEvent) -> bool:
        """Starts and ends of programs."""
        program = event.text("program")
        if event.name in _PROGRAMS:
            name = _PROGRAMS[event.name]
            gone = self._open.pop(("exit", name), None)
            if gone is not None:
                gone.ends = event.at
                gone.details.append(f"it was back after {gone.seconds:.1f} s")
            else:
                self._add(Episode(event.at, f"the {name} started, process {event.text('pid')}"))
        elif event.name == "process_exited":
            episode = Episode(event.at, f"the {program} ended unexpectedly, process {event.text('pid')}", is_bad=True)
            episode.action = "the lines before it say why; supervisord starts it again"
            self._open["exit", program] = self._add(episode)
        elif event.name in ("server_stopped", "updater_stopped"):
            self._add(Episode(event.at, event.name.replace("_", " ")))
        elif event.name == "drain_begun":
            unanswered = event.text("unanswered") or "0"
            more = "" if unanswered == "0" else f", {unanswered} requests are unanswered"
            self._add(Episode(event.at, f"the server was told to stop, and drains{more}"))
        else:
            return event.name in ("process_started", "runner_started", "runner_ready", "runner_ended")
        return True

    def _hear_model(self, event: LogEvent) -> bool:
        """Deaths, swaps, readiness, overload and fallbacks."""
        model = event.text("model") or event.text("service")
        if event.name == "runner_died":
            self._hear_death(event, model)
        elif event.name == "health_changed":
            self._hear_health(event, model)
        elif event.name == "request_handed_over":
            self._count_handover(event, model)
        elif event.name in ("overload_begun", "cpu_fallback_begun", "cpu_fallback_taken", "cpu_fallback_kept"):
            self._begin(event, model)
        elif event.name in ("overload_ended", "cpu_fallback_ended"):
            self._end(event, model)
        elif event.name in ("slot_activated", "trial_committed", *_TAKEN_BACK):
            self._hear_swap(event, model)
        else:
            return event.name in ("load_begun", "load_ended", "role_changed", "retire_begun", "runner_retired")
        return True

    def _hear_death(self, event: LogEvent, model: str) -> None:
        detail = event.text("detail")
        cause = next((sentence for word, sentence in _DEATHS.items() if word in detail), "")
        serving = event.text("role") in ("ACTIVE", "TRIAL", "FALLBACK")
        title = f"{model}: the runner of slot {event.text('slot')} {detail}"
        if event.text("revision"):
            title += f", with {event.text('revision')}, {event.text('role').lower()}"
        episode = self._add(Episode(event.at, title, action=cause, is_bad=True))
        if serving:
            self._deaths[model] = episode

    def _hear_health(self, event: LogEvent, model: str) -> None:
        episode = self._deaths.get(model)
        if episode is None:
            return
        seconds = (event.at - episode.begins).total_seconds()
        if event.fields.get("serving"):
            self._deaths.pop(model)
            episode.ends = event.at
            episode.details.append(f"{seconds:.1f} s: it serves again")
        else:
            episode.details.append(f"{seconds:.1f} s: not ready")

    def _count_handover(self, event: LogEvent, model: str) -> None:
        update = next((one for one in reversed(self._updates.values()) if one.title.startswith(f"{model}:")), None)
        line = f"what it failed was handed over: {event.text('reason')}"
        if update is None:
            self._say(event, f"{model}: {line}", "")
        elif update.details and update.details[-1].startswith(line):
            known = update.details[-1].rpartition("× ")[2] if "× " in update.details[-1] else "1"
            update.details[-1] = f"{line} × {int(known) + 1}"
        else:
            update.details.append(line)

    def _hear_swap(self, event: LogEvent, model: str) -> None:
        transaction = event.text("transaction_id")
        update = self._updates.get(transaction)
        word = event.name.replace("_", " ")
        if update is not None:
            seconds = (event.at - update.begins).total_seconds()
            update.details.append(f"{seconds:.1f} s: {word}, slot {event.text('slot')} with {event.text('revision')}")
        elif event.name != "trial_committed":
            bad = event.name in _TAKEN_BACK
            title = f"{model}: {word}, slot {event.text('slot')} with {event.text('revision')}"
            self._add(Episode(event.at, title, is_bad=bad))

    def _begin(self, event: LogEvent, model: str) -> None:
        kind = "overload" if event.name.startswith("overload") else "fallback"
        known = self._open.get((kind, model))
        sentence = "is offered more than it serves: its queue is kept short"
        action = "add servers, or give callers weights and quotas"
        if kind == "fallback":
            device, other = event.text("device"), event.text("fallback_device")
            sentence = f"runs on {other} instead of {device}: {event.text('detail')}"
            action = "free memory on the device; the updater tries it again by itself"
        if known is None:
            self._open[kind, model] = self._add(Episode(event.at, f"{model} {sentence}", action=action, is_bad=True))
        else:
            known.details.append(event.name.replace("_", " "))

    def _end(self, event: LogEvent, model: str) -> None:
        kind = "overload" if event.name.startswith("overload") else "fallback"
        episode = self._open.pop((kind, model), None)
        if episode is not None:
            episode.ends = event.at

    def _say(self, event: LogEvent, sentence: str, action: str, *, is_bad: bool = True) -> None:
        known = self._said.get(sentence)
        last = None if known is None else known.ends or known.begins
        if known is not None and last is not None and (event.at - last).total_seconds() <= _REPEATED_SECONDS:
            known.times += 1
            known.ends = event.at
            return
        self._said[sentence] = self._add(Episode(event.at, sentence, action=action, is_bad=is_bad))

    def _add(self, episode: Episode) -> Episode:
        self.episodes.append(episode)
        return episode
