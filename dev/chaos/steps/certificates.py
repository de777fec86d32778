"""L25: certificates and tokens change twice a second under load, broken ones among them: no call may be lost."""

import random
import time
from collections.abc import Callable

import grpc

from common.tokens import make_entry, make_token, write_tokens
from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.harness.answers import scores_of
from dev.harness.certificates import replace_file
from dev.harness.numbers import ms, percentile
from dev.harness.secured import Secured
from dev.harness.supervised import QUESTIONS, ScriptedStack
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub
from hotslot.status.v1 import status_pb2
from hotslot.status.v1.status_pb2_grpc import StatusServiceStub

SECONDS, PAUSE_SECONDS = 60.0, 0.5
PAIRS = 6
SETTLE_SECONDS = 5.0  # within which a change must have its effect


def run(task: Task) -> Findings:
    """Change the files while some callers stay connected and others connect for each call."""
    findings, chance, secured = Findings(), random.Random(task.seed), Secured(task.folder / "secured", PAIRS)
    seconds = task.seconds or SECONDS
    changes = _changes(secured, chance)
    with (
        ScriptedStack(task.folder, sections=secured.sections) as stack,
        Promises(stack) as promises,
        stack.load(open_channel=secured.open_channel) as load,
    ):
        took, lost, counts = list[float](), list[str](), dict.fromkeys(changes, 0)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            name = chance.choice(list(changes))
            changes[name]()
            counts[name] += 1
            until = time.monotonic() + PAUSE_SECONDS
            while time.monotonic() < until:
                _call_once(stack, secured, took, lost)
        secured.listener.use(secured.pairs[1])
        fingerprint = stack.wait(lambda: _settled(stack, secured), "the last pair is in use", SETTLE_SECONDS)
        secured.listener.use(secured.pairs[2])
        stack.wait(lambda: _settled(stack, secured) not in ("", fingerprint), "another pair is in use", SETTLE_SECONDS)
        findings.troubles += promises.kept("v1.1.0", load)
        report = load.report()
    findings.count = sum(counts.values())
    findings.numbers = {
        **{name.replace(" ", "_"): count for name, count in counts.items()},
        "calls_on_open_connections": report.attempts,
        "calls_on_new_connections": len(took) + len(lost),
        "lost": len(report.failed) + len(lost),
        "new_connection_p50_ms": ms(percentile(took, 0.5)),
        "new_connection_p99_ms": ms(percentile(took, 0.99)),
    }
    findings.expect(so=not lost, otherwise=f"{len(lost)} calls on new connections lost, first: {lost[:3]}")
    findings.expect(so=bool(counts["new pair"] and counts["broken key"]), otherwise="too few changes")
    return findings


def _changes(secured: Secured, chance: random.Random) -> dict[str, Callable[[], None]]:
    """The changes by name. Each leaves a listener that the callers can trust, if what is broken is not used."""
    files = secured.listener.files

    def half_replaced() -> None:
        replace_file(files.certificate, chance.choice(secured.pairs).certificate.read_bytes())

    def truncated() -> None:
        content = chance.choice(secured.pairs).certificate.read_bytes()
        replace_file(files.certificate, content[: chance.randrange(len(content))])

    return {
        "new pair": lambda: secured.listener.use(chance.choice(secured.pairs)),
        "certificate without its key": half_replaced,
        "broken key": lambda: replace_file(files.key, b"-----BEGIN PRIVATE KEY-----\nnothing"),
        "truncated certificate": truncated,
        "no certificate": lambda: files.certificate.unlink(missing_ok=True),
        "new token": lambda: write_tokens(secured.tokens, added=make_entry("other", make_token(), "")),
        "client CA written again": lambda: replace_file(
            secured.authority.certificate, secured.authority.certificate.read_bytes()
        ),
    }


def _call_once(stack: ScriptedStack, secured: Secured, took: list[float], lost: list[str]) -> None:
    """One call on a connection of its own; a wrong answer is a lost one."""
    asked, begun = QUESTIONS[len(took) % len(QUESTIONS)], time.monotonic()
    with secured.open_channel(stack.address) as channel:
        try:
            response = EntailmentServiceStub(channel).Predict(asked.request(), timeout=10)
        except grpc.RpcError as error:
            lost.append(str(error))
            return
    if scores_of(response) != stack.answers.of(response.served_by.revision, asked):
        lost.append(f"not the answer of {response.served_by.revision}")
    took.append(time.monotonic() - begun)


def _settled(stack: ScriptedStack, secured: Secured) -> str:
    """The fingerprint of the certificate that new connections get, once the files on disk are in use; else empty."""
    with secured.open_channel(stack.address) as channel:
        answer = StatusServiceStub(channel).GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=10)
    return "" if answer.access.level != status_pb2.HEALTH_LEVEL_OK else str(answer.access.certificate.fingerprint)
