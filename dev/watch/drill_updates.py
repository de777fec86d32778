"""Faults of the drill in updates, access and disk: a stack with a hub over HTTP, and one with TLS and a small disk."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from common.tokens import make_entry, make_token, write_tokens
from dev.harness.certificates import Authority
from dev.harness.hub import Hub, hub
from dev.harness.revisions import MODEL, publish_scripted
from dev.harness.settings import Sections
from dev.watch.drill_faults import DrillFault
from dev.watch.drill_stack import DrillStack, run_command
from hotslot.updates.v1 import updates_pb2 as pb

DISK_MB = 64


@contextlib.contextmanager
def bad_revision(drill: DrillStack) -> Iterator[None]:
    """A revision that fails callers on trial."""
    with drill.stack.load():
        drill.stack.publish_bad("v1.3.0")
        yield


@contextlib.contextmanager
def published_again(drill: DrillStack) -> Iterator[None]:
    """A committed version gets other content on the hub."""
    shutil.rmtree(drill.stack.hub / MODEL / "v1.0.0")
    publish_scripted(drill.stack.hub, "v1.0.0", drill.folder / "again", salt="other")
    yield


@contextlib.contextmanager
def paused(drill: DrillStack) -> Iterator[None]:
    """An operator pauses updates and forgets it."""
    drill.stack.operator.Pause(pb.PauseRequest(reason="release freeze"), timeout=20)
    try:
        yield
    finally:
        drill.stack.operator.Resume(pb.ResumeRequest(), timeout=20)


@contextlib.contextmanager
def quiet_hub(drill: DrillStack) -> Iterator[None]:
    """Nothing is published for 40 seconds."""
    del drill
    yield


@contextlib.contextmanager
def only_branches(drill: DrillStack) -> Iterator[None]:
    """The hub has only names that are not followed."""
    folder, away = drill.stack.hub / MODEL, drill.folder / "away"
    away.mkdir()
    for path in list(folder.iterdir()):
        shutil.move(path, away / path.name)
    publish_scripted(drill.stack.hub, "master", drill.folder / "branch")
    try:
        yield
    finally:
        for path in away.iterdir():
            shutil.move(path, folder / path.name)


@contextlib.contextmanager
def hub_gone(drill: DrillStack) -> Iterator[None]:
    """The hub's folder is not there."""
    away = drill.folder / "hub-away"
    shutil.move(drill.stack.hub, away)
    try:
        yield
    finally:
        shutil.move(away, drill.stack.hub)


@contextlib.contextmanager
def broken_journal(drill: DrillStack) -> Iterator[None]:
    """The journal is overwritten, and the updater starts again."""
    pid = drill.stack.pid("updater")
    os.kill(pid, signal.SIGSTOP)
    for path in drill.stack.state.glob("journal.db*"):
        path.write_bytes(b"not a database" * 1000)
    os.kill(pid, signal.SIGKILL)
    yield


FAULTS = (
    DrillFault(
        "a revision that fails callers on trial",
        bad_revision,
        {"HotslotUpdateFailed": "v1.3.0", "HotslotRevisionQuarantined": "quarantine"},
    ),
    DrillFault(
        "a version is published again with other content",
        published_again,
        {"HotslotRevisionRepublished": "published again"},
    ),
    DrillFault("updates are paused", paused, {"HotslotUpdatesPaused": "paused"}),
    DrillFault("the hub has only a branch", only_branches, {"HotslotNothingFollowed": "master"}),
    DrillFault("nothing is published for 40 s", quiet_hub, {"HotslotListingOld": "names"}),
    DrillFault("the hub is gone", hub_gone, {"HotslotHubSilent": "hub"}),
    DrillFault(
        "the journal is overwritten",
        broken_journal,
        {"HotslotUpdateLoopStopped": "journal", "HotslotUpdaterErrors": "journal"},
    ),
)


def secured(folder: Path) -> Sections:
    """A certificate of a day, and tokens."""
    pair = Authority(folder / "ca").sign("server", days=1)
    write_tokens(folder / "tokens", added=make_entry("caller", make_token(), ""))
    return {
        "tls": {"certificate_file": str(pair.certificate), "key_file": str(pair.key)},
        "server": {"tokens_file": str(folder / "tokens")},
    }


@contextlib.contextmanager
def as_configured(drill: DrillStack) -> Iterator[None]:
    """The settings are the fault."""
    del drill
    yield


@contextlib.contextmanager
def garbage_tokens(drill: DrillStack) -> Iterator[None]:
    """The tokens file gets a line that is none."""
    path = drill.folder / "tokens"
    before = path.read_bytes()
    path.write_text("not a token\n", encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def no_tokens(drill: DrillStack) -> Iterator[None]:
    """All tokens are revoked."""
    (drill.folder / "tokens").write_text("", encoding="utf-8")
    yield


@contextlib.contextmanager
def full_disk(drill: DrillStack) -> Iterator[None]:
    """A file fills the disk of the state folder."""
    free = shutil.disk_usage(drill.stack.state).free
    path = drill.stack.state / "filler"
    path.write_bytes(b"\0" * int(free * 0.995))
    try:
        yield
    finally:
        path.unlink()


ACCESS_FAULTS = (
    DrillFault(
        "a certificate of one day",
        as_configured,
        {"HotslotCertificateEnds": "certificate", "HotslotCertificateEnded": "certificate"},
        is_from_start=True,
    ),
    DrillFault("the tokens file has garbage", garbage_tokens, {"HotslotReloadFailed": "tokens"}),
    DrillFault("all tokens are revoked", no_tokens, {"HotslotNoTokens": "token"}),
    DrillFault(
        "the disk of the state folder is full", full_disk, {"HotslotDiskLow": "disk", "HotslotDiskFull": "disk"}
    ),
)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few MB for the state folder; needs root."""
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "hotslot-drill", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["/usr/bin/env", "umount", "--lazy", str(place)], check=False)


WEBHOOKS = """
[[updater.webhooks]]
url = "http://127.0.0.1:9/"
name = "away"
[[updater.webhooks]]
url = "{hub}/"
name = "refusing"
events = ["update_committed"]
"""


class HttpHub:
    """The stack's folder hub, served over HTTP with faults; ended with `exits`."""

    def __init__(self, exits: contextlib.ExitStack) -> None:
        self._exits = exits
        self.served: Hub | None = None

    def sections(self, folder: Path) -> Sections:
        """Settings that name it."""
        self.served = self._exits.enter_context(hub(folder / "stack"))
        return {"updater": {"hub_endpoint": self.served.url}, "model": {"hub_model": f"any/{MODEL}"}}

    def webhooks(self, _folder: Path) -> str:
        """One receiver that is away, and one that refuses."""
        return "" if self.served is None else WEBHOOKS.format(hub=self.served.url)

    @contextlib.contextmanager
    def failing_files(self, drill: DrillStack) -> Iterator[None]:
        """The weights end with an error of the hub, but for the first look at them."""
        if self.served is not None:
            self.served.arm("file:*.safetensors status=503 skip=1")
        drill.stack.publish("v1.2.0")
        try:
            yield
        finally:
            if self.served is not None:
                self.served.arm()

    @contextlib.contextmanager
    def many_events(self, drill: DrillStack) -> Iterator[None]:
        """Updates, whose events one receiver refuses and the other does not get."""
        for revision in ("v1.1.0", "v1.1.1"):
            drill.stack.publish(revision)
            drill.stack.wait_committed(revision)
        yield

    @contextlib.contextmanager
    def without_golden_set(self, drill: DrillStack) -> Iterator[None]:
        """The golden set is taken out of the settings, and a revision is published."""
        lines = drill.stack.config.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if not line.startswith("golden = "))
        drill.stack.config.write_text(kept, encoding="utf-8")
        run_command(drill, "hotslot reload")
        drill.stack.publish("v1.5.0")
        yield

    def faults(self) -> tuple[DrillFault, ...]:
        """In the order in which they are provoked."""
        return (
            DrillFault(
                "receivers of events: one away, one that refuses",
                self.many_events,
                {"HotslotWebhookEventsLost": "v1.1.0", "HotslotWebhookQueueLong": "away"},
            ),
            DrillFault(
                "the hub answers 503 for the weights",
                self.failing_files,
                {"HotslotDownloadsFailing": "503", "HotslotBreakerOpen": "breaker"},
            ),
            DrillFault(
                "the golden set is gone from the settings, and a revision comes",
                self.without_golden_set,
                {"HotslotNoGoldenSet": "golden", "HotslotUpdateHeld": "held"},
            ),
        )
