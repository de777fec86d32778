"""The outside world of the updater in memory: a hub, a server with two slots, a disk, a journal, a golden set.

Each implements a port of `updater.core.ports`. A revision's quality is what it is worth, whoever asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.bundle import HubKind, HubLocation, Provenance
from dev.harness.simulated_server import SimServer
from updater.core.comparison import GoldenAnswer
from updater.core.effects import EffectFailure
from updater.core.facts import GoldenFacts, HubFile, Release
from updater.core.golden import GateAnswers, GoldenQuestion
from updater.core.ports import EffectFailed, Hub, JournalUnusable
from updater.core.record import Event, Installed, ModelRecord
from updater.store.record_json import from_json, to_json

_SIMULATED = HubLocation(HubKind.FOLDER, "simulated")


@dataclass(frozen=True, slots=True)
class Quality:
    """What the content of a revision is worth."""

    verifies: bool = True
    converts: bool = True
    is_compatible: bool = True  # with whatever serves
    has_same_labels: bool = True  # as whatever serves
    notes: tuple[str, ...] = ()  # of its bundle
    loads: str = ""  # reason with which a load fails
    right: int = 20  # of 20 expected golden answers, the first ones
    agrees: int = 20  # of 20 others, with everybody
    failure: str = ""  # of each golden answer
    cost_seconds: float = 1.0  # of a run of the gate
    row_seconds: float = 0.01  # device seconds of a caller's row
    changes: float = 0.0  # share of callers' answers that it changes, and of none on the golden set
    fails_callers: str = ""  # reason with which it fails callers, though it is right on golden answers
    fails_on: Mapping[str, str] = field(default_factory=dict)  # device → failure of each golden answer there


@dataclass(slots=True)
class SimHub:
    """Revisions by name; what a name holds is its content."""

    contents: dict[str, str] = field(default_factory=dict)
    unready: set[str] = field(default_factory=set)
    spoilt: set[str] = field(default_factory=set)  # whose bytes are not what is listed
    former: dict[str, str] = field(default_factory=dict)  # content → what earlier builds took it for
    unhashed: set[str] = field(default_factory=set)  # listed without hashes: only a size identifies them
    beside: tuple[str, ...] = ()  # names of other files that every revision lists
    reads: int = 0  # of files
    commits: dict[str, str] = field(default_factory=dict)  # commit id → content, also of what no name has any more
    place: HubLocation = _SIMULATED
    faults: list[EffectFailure] = field(default_factory=list)  # for the next calls
    fault: EffectFailure | None = None  # for every call

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        self._may_fail()
        return tuple(self.contents)

    def release(self, revision: str, deadline_seconds: float) -> Release:
        self._may_fail()
        content = self.contents.get(revision) or self.commits.get(revision)
        if content is None:
            raise EffectFailed.permanent("REVISION_UNKNOWN", f"there is no {revision}")
        is_ready = revision not in self.unready
        if revision in self.unhashed:
            return Release(revision, (HubFile("weights", 1, ""),), "", is_ready, listing="one file")
        commit_id = next((name for name, row in self.commits.items() if row == content), "")
        files = (HubFile("weights", 1, content), *(HubFile(name, 1, content) for name in self.beside))
        missing = "" if is_ready else "weights are short"
        former = source_of(self.former[content]) if content in self.former else ""
        return Release(revision, files, source_of(content), is_ready, missing, "", commit_id, former)

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        self._may_fail()
        self.reads += 1
        content = self.contents.get(revision) or self.commits[revision]
        yield ("other bytes" if revision in self.spoilt else content).encode()[offset:]

    def _may_fail(self) -> None:
        if self.faults:
            raise EffectFailed(self.faults.pop(0))
        if self.fault is not None:
            raise EffectFailed(self.fault)


@dataclass(slots=True)
class SimDisk:
    """What survives a crash, and what can go wrong with it."""

    staged: dict[str, str] = field(default_factory=dict)  # update id → content
    sources: set[str] = field(default_factory=set)  # kept contents
    sealed: set[str] = field(default_factory=set)  # bundle digests
    pointer: Installed | None = None
    pointer_is_readable: bool = True
    pointer_fault: Exception | None = None  # of everything that reads the pointer
    record: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    is_full: bool = False
    journal_fails: bool = False
    journal_is_lost: bool = False

    def check(self) -> None:
        """Refuse to write on a full disk."""
        if self.is_full:
            raise EffectFailed.transient("DISK_FULL", "no space left")


@dataclass(slots=True)
class SimStore:
    """Bundles, sources and the pointer of one model."""

    disk: SimDisk
    qualities: dict[str, Quality]
    free: int = 1 << 40  # bytes
    converter: str = "1"  # version; another one makes other bundles of the same source

    def stage(
        self, update_id: str, release: Release, hub: Hub, max_bytes: int, deadline_seconds: float, *, is_fresh: bool
    ) -> str:
        self.disk.check()
        content = b"".join(hub.read(release.revision, "weights", 0, deadline_seconds)).decode()
        if release.files[0].sha256 not in ("", content):
            raise EffectFailed.transient("CONTENT_MISMATCH", "weights have another SHA-256 than listed")
        self.disk.staged[update_id] = content
        return source_of(content)

    def source_folder(self, update_id: str, source_digest: str, *, is_kept: bool) -> Path:
        content = source_digest.removeprefix("source ")
        is_there = content in self.disk.sources if is_kept else self.disk.staged.get(update_id) == content
        if not is_there:
            raise EffectFailed.transient("SOURCE_MISSING", "its files are not here")
        return Path(content)

    def verify(self, folder: Path, source_digest: str, compatible_with: str) -> None:
        if not self.qualities[folder.name].verifies:
            raise EffectFailed.transient("CONTENT_MISMATCH", "a bit has flipped")

    def check_compatible(self, bundle_digest: str, compatible_with: str, *, may_change_labels: bool) -> None:
        if compatible_with and not self.qualities[content_of(bundle_digest)].is_compatible:
            raise EffectFailed.permanent("TYPE_CHANGED", "another model")
        if compatible_with and not may_change_labels and not self.qualities[content_of(bundle_digest)].has_same_labels:
            raise EffectFailed.permanent("LABELS_CHANGED", "new: B-road")

    def notes(self, bundle_digest: str) -> tuple[str, ...]:
        return self.qualities[content_of(bundle_digest)].notes

    def keep_source(self, update_id: str, source_digest: str) -> None:
        self.disk.check()
        self.disk.sources.add(source_digest.removeprefix("source "))
        self.disk.staged.pop(update_id, None)

    def sealed(self) -> frozenset[str]:
        return frozenset(self.disk.sealed)

    def free_bytes(self) -> int:
        return 0 if self.disk.is_full else self.free

    def converts_to(self, installed: Installed) -> str:
        content = installed.source_digest.removeprefix("source ")
        return bundle_of(content, self.converter) if content in self.disk.sources else ""

    def pointer(self) -> Installed | None:
        if self.disk.pointer_fault is not None:
            raise self.disk.pointer_fault
        if not self.disk.pointer_is_readable:
            raise EffectFailed.permanent("POINTER_BROKEN", "it is malformed")
        return self.disk.pointer

    def write_pointer(self, installed: Installed | None) -> None:
        self.disk.check()
        if self.disk.pointer_fault is not None:
            raise self.disk.pointer_fault
        self.disk.pointer, self.disk.pointer_is_readable = installed, True

    def collect(
        self, keep_bundles: frozenset[str], keep_sources: frozenset[str], keep_update_id: str, cap_bytes: int
    ) -> None:
        self.disk.sealed &= keep_bundles
        self.disk.sources &= {digest.removeprefix("source ") for digest in keep_sources}
        self.disk.staged = {name: row for name, row in self.disk.staged.items() if name == keep_update_id}


@dataclass(slots=True)
class SimConverter:
    """Seals at once."""

    store: SimStore
    faults: list[EffectFailure] = field(default_factory=list)

    def seal(
        self, folder: Path, revision: str, precision: str, deadline_seconds: float, provenance: Provenance | None
    ) -> str:
        if self.faults:
            raise EffectFailed(self.faults.pop(0))
        self.store.disk.check()
        if not self.store.qualities[folder.name].converts:
            raise EffectFailed.permanent("WEIGHTS_BROKEN", "a tensor is missing")
        digest = bundle_of(folder.name, self.store.converter)
        self.store.disk.sealed.add(digest)
        return digest


@dataclass(slots=True)
class SimGolden:
    """Twenty questions with an expectation and twenty without."""

    server: SimServer
    qualities: dict[str, Quality]
    set_facts: GoldenFacts = field(default_factory=lambda: GoldenFacts("golden", questions=40, expected=20))
    faults: list[EffectFailure] = field(default_factory=list)
    probe_failures: list[str] = field(default_factory=list)  # of the next items of probes; empty: it is answered
    probe_seconds: float = 0.0  # of each item of a probe
    passes: Callable[[float], None] = lambda _: None  # lets time pass

    def facts(self) -> GoldenFacts:
        return self.set_facts

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        if self.faults:
            raise EffectFailed(self.faults.pop(0))
        quality = self._quality(load_id)
        active = self._quality(active_load_id) if active_load_id else None
        asked = [_asked(number, quality, active) for number in range(40)]
        if not digest:
            asked = [replace(row, expected="") for row in asked]
        seconds = 0.0 if active is None else active.cost_seconds
        device = self.server.device_of(load_id)
        return GateAnswers(
            digest, device, "float32", tuple(asked), self.set_facts.min_accuracy, quality.cost_seconds, seconds
        )

    def probe(self, load_id: str, previous_load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        quality = self._quality(load_id)
        if self.probe_seconds:
            items = min(items, int(deadline_seconds / self.probe_seconds))
            self.passes(items * self.probe_seconds if items else deadline_seconds)
        if not items:
            raise EffectFailed.inconclusive("DEADLINE", "probing took too long")
        reasons = [quality.failure] * items if quality.failure else self.probe_failures[:items]
        del self.probe_failures[:items]
        failed = [reason for reason in reasons if reason]
        if failed and previous_load_id and self._quality(previous_load_id).failure:
            return (items - len(failed), 0, 0)
        return (items - len(failed), len(failed), failed.count("NOT_FINITE"))

    def _quality(self, load_id: str) -> Quality:
        bundle = self.server.bundle_of(load_id)
        if bundle is None:
            raise EffectFailed.transient("LOAD_UNKNOWN", "no slot holds this load")
        quality = self.qualities.get(bundle) or self.qualities[content_of(bundle)]  # one conversion may be worse
        device = self.server.device_of(load_id)
        if self.server.overflows(load_id):
            return replace(quality, failure="OUT_OF_MEMORY")
        return replace(quality, failure=quality.failure or quality.fails_on.get(device, ""))


@dataclass(slots=True)
class SimJournal:
    """Keeps the record as JSON, so that whatever is written has been read back."""

    disk: SimDisk

    def load(self, model: str) -> ModelRecord | None:
        return None if self.disk.record is None else from_json(self.disk.record)

    def check(self) -> None:
        if self.disk.journal_is_lost:
            raise JournalUnusable("it is gone")

    def write(self, record: ModelRecord, events: Sequence[Event]) -> None:
        if self.disk.journal_fails or self.disk.is_full:
            raise OSError("no space left")
        self.disk.record = to_json(record)
        self.disk.events += events


def source_of(content: str) -> str:
    """Source digest of a content."""
    return f"source {content}"


def bundle_of(content: str, converter: str = "1") -> str:
    """Bundle digest that a converter makes of a content."""
    return f"bundle {converter} {content}"


def content_of(bundle_digest: str) -> str:
    """Content of a bundle."""
    return bundle_digest.split(" ", 2)[2]


def _asked(number: int, quality: Quality, active: Quality | None) -> GoldenQuestion:
    is_expected = number < 20
    said = None if active is None else _answer(number, active)
    return GoldenQuestion(f"item {number}", "?", "yes" if is_expected else "", _answer(number, quality), said)


def _answer(number: int, quality: Quality) -> GoldenAnswer:
    if quality.failure:
        return GoldenAnswer(failure=quality.failure)
    good = quality.right if number < 20 else quality.agrees
    return GoldenAnswer("yes" if number % 20 < good else "no")
