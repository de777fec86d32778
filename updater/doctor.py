"""Examines a hub, read only: what would be followed, taken, ignored and refused, and why. For `hotslot hub doctor`."""

from dataclasses import dataclass
from enum import StrEnum

from common.bundle import Committed
from common.clock import Clock
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ManifestBroken, check_names, describe_odd_names
from updater.core.effects import Listed, PollHub
from updater.core.facts import HubFile, Release
from updater.core.ports import EffectFailed, Hub
from updater.core.record import Installed, ModelRecord
from updater.core.rules import Rules
from updater.core.versions import explain_left_out, find_policy_refusal, is_after, parse_version
from updater.perform import poll_hub
from updater.revision import UnsupportedRevision, find_declared_files
from updater.stages.choice import Choice, choose, find_recognised, list_left_out, name_release, sort_by_version

MAX_SHOWN = 20  # names of one verdict
POLL_SECONDS = 60.0
READ_SECONDS = 30.0
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_BRANCHES = ("master", "main")


class Finding(StrEnum):
    """The updater's decision on a name on the hub."""

    TAKE = "take"  # fetch it, and serve it if it passes
    HOLD = "hold"  # ask an operator first
    KEEP = "keep"  # it is committed
    WAIT = "wait"  # it is not complete
    REFUSE = "refuse"  # it cannot be served, or policy forbids it
    IGNORE = "ignore"  # it is not followed, or older


@dataclass(frozen=True, slots=True)
class FoundRevision:
    """One name on the hub."""

    name: str
    finding: Finding
    why: str = ""  # empty if nothing is to be said
    engine: str = ""  # that serves it; empty if it was not examined, or none does
    files: int = 0  # that would be fetched
    size: int = 0  # bytes of these
    commit_id: str = ""  # or its first digits; empty if the hub does not say


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of a repository, as the updater would see it at its first poll."""

    names: int  # revisions that the hub lists
    revisions: tuple[FoundRevision, ...]
    more_ignored: int  # ignored names that are not in `revisions`
    notes: tuple[str, ...]  # for people, in whole sentences

    @property
    def is_usable(self) -> bool:
        """Whether something can be followed now."""
        return any(row.finding in (Finding.TAKE, Finding.HOLD, Finding.KEEP) for row in self.revisions)


def examine(hub: Hub, rules: Rules, committed: Committed | None, clock: Clock) -> Diagnosis:
    """Poll a hub as the updater would, and check the listed revisions; nothing is fetched but small files.

    Raises:
        EffectFailed: the hub does not answer, or has no such model.
    """
    record = _make_record(committed, rules)
    row = record.committed
    look = PollHub(
        policy=rules.policy,
        min_version=record.min_version,
        committed_revision="" if row is None else row.revision,
        recognise="" if row is None or record.min_version or rules.policy.branch else row.source_digest,
        deadline_seconds=POLL_SECONDS,
    )
    listed = poll_hub(look, hub, clock)
    known = find_recognised(record, listed, rules.policy)
    if known:
        record = ModelRecord(record.model, committed=row, min_version=known)
    choice = choose(record, listed, rules)
    checked = {release.revision: _Check(hub, release) for release in listed.releases}
    rows = [
        _judge(release, checked[release.revision], record, choice, listed, rules) for release in _sort(listed, rules)
    ]
    others = _list_others(listed, rules)
    notes = [note for check in checked.values() for note in check.notes]
    notes += _advise(listed, rules, known)
    ignored = [FoundRevision(name, Finding.IGNORE, why) for name, why in others[:MAX_SHOWN]]
    return Diagnosis(len(listed.names), (*rows, *ignored), max(0, len(others) - MAX_SHOWN), tuple(dict.fromkeys(notes)))


def _make_record(committed: Committed | None, rules: Rules) -> ModelRecord:
    """The record of an updater that has only the committed pointer."""
    if committed is None:
        return ModelRecord("")
    row = Installed(committed.revision, committed.source_digest, committed.bundle_digest, committed.origin)
    is_release = parse_version(row.revision, rules.policy) is not None
    return ModelRecord("", committed=row, min_version=row.revision if is_release else "")


class _Check:
    """Faults and notes on one listed revision."""

    def __init__(self, hub: Hub, release: Release) -> None:
        self._hub, self._release = hub, release
        self.size = 0  # bytes of the declared files
        self.files = 0
        self.engine = ""
        self.notes: list[str] = []
        self.problem = self._find_problem() if release.files else ""

    def _find_problem(self) -> str:
        """Why the revision cannot be served; empty if nothing is found without fetching the weights."""
        rows = {file.name: file for file in self._release.files}
        try:
            check_names(list(rows))
            declared = find_declared_files({name: row.size for name, row in rows.items()}, self._read)
        except (ManifestBroken, UnsupportedRevision) as error:
            return str(error)
        except EffectFailed as error:
            return error.failure.message
        self.engine = declared.engine.engine
        self.files, self.size = len(declared.names), sum(rows[name].size for name in declared.names)
        pointer = next((name for name in declared.names if self._is_pointer(rows[name].size, name)), "")
        if pointer:
            return f"{pointer} is a Git LFS pointer of {rows[pointer].size} bytes, not the file itself"
        self._note_extras([file for file in self._release.files if file.name not in declared.names])
        unhashed = [name for name in declared.names if not rows[name].sha256]
        if unhashed:
            named = f"{self._release.revision}: the hub lists no hash of {', '.join(unhashed)}"
            self.notes.append(f"{named}; it is computed from what is fetched, so a change on the way is not noticed")
        return ""

    def _note_extras(self, files: list[HubFile]) -> None:
        self.notes += [f"{self._release.revision}: {note}" for note in describe_odd_names([row.name for row in files])]
        nested = sum("/" in file.name for file in files)
        if nested:
            self.notes.append(f"{self._release.revision}: {nested} files in subfolders are not fetched")

    def _is_pointer(self, size: int, name: str) -> bool:
        if size > _POINTER_BYTES or name.endswith(".json"):
            return False
        try:
            return self._read(name).startswith(_POINTER)
        except EffectFailed:
            return False

    def _read(self, name: str) -> bytes:
        content = b""
        for piece in self._hub.read(self._release.revision, name, 0, READ_SECONDS):
            content += piece
            if len(content) > MAX_CONFIG_BYTES:
                raise UnsupportedRevision("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
        return content


def _sort(listed: Listed, rules: Rules) -> list[Release]:
    """The listed revisions that are followed, newest first."""
    if rules.policy.branch:
        return [release for release in listed.releases if release.revision == rules.policy.branch]
    return [release for _, release in sort_by_version(listed, rules.policy)]


def _judge(
    release: Release, check: _Check, record: ModelRecord, choice: Choice, listed: Listed, rules: Rules
) -> FoundRevision:
    """The updater's decision on one listed revision."""
    name, committed = name_release(release, rules.policy, listed.names).revision, record.committed
    if committed is not None and release.source_digest == committed.source_digest != "":
        found, why = Finding.KEEP, f"its content is committed as {committed.revision}"
    elif check.problem:
        found, why = Finding.REFUSE, check.problem
    elif not release.is_ready:
        found, why = Finding.WAIT, release.missing
    elif choice.release is not None and choice.release.revision == name:
        found, why = Finding.TAKE if choice.held_for is None else Finding.HOLD, choice.message
    else:
        found, why = _judge_other(release, record, choice, rules)
    return FoundRevision(name, found, why, check.engine, check.files, check.size, release.commit_id)


def _judge_other(release: Release, record: ModelRecord, choice: Choice, rules: Rules) -> tuple[Finding, str]:
    """Why a revision that could be served is not chosen."""
    version = parse_version(release.revision, rules.policy)
    refusal = choice.why_not
    if version is not None:
        refusal = find_policy_refusal(version, release.revision, record.min_version, rules.policy)
    if refusal:
        return Finding.REFUSE, refusal
    newer = record.min_version if choice.release is None else choice.release.revision
    is_older = is_after(newer, release.revision, rules.policy)
    return Finding.IGNORE, f"{newer} is newer" if is_older else "it is not newer"


def _list_others(listed: Listed, rules: Rules) -> list[tuple[str, str]]:
    """Names that no poll lists, with the reason."""
    policy = rules.policy
    if policy.branch:
        return [(name, f"updates follow {policy.branch}") for name in list_left_out(listed.names, policy)]
    left_out = [(name, explain_left_out(name, policy)) for name in list_left_out(listed.names, policy)]
    shown = {release.revision for release in listed.releases}
    older = [name for name in listed.names if parse_version(name, policy) is not None and name not in shown]
    return left_out + [(name, "it is older") for name in older]


def _advise(listed: Listed, rules: Rules, recognised: str) -> list[str]:
    policy = rules.policy
    if not listed.names:
        return ["the hub lists no revision of this model"]
    notes = [f"the committed content is that of {recognised}"] if recognised else []
    if policy.branch:
        if policy.branch not in listed.names:
            has = ", ".join(list_left_out(listed.names, policy)[:MAX_SHOWN]) or "nothing"
            notes.append(f"the hub has no branch {policy.branch}; it has {has}")
        return notes
    branch = next((name for name in _BRANCHES if name in listed.names), "")
    if branch and len(list_left_out(listed.names, policy)) == len(listed.names):
        notes.append(f'no name is a release; follow = "branch:{branch}" follows what {branch} has')
    return notes
