"""Real runner processes without faults: hello, load, items, cancellation, deadlines, retirement."""

import os
from pathlib import Path

import pytest

from common.bundle import bundle_folder
from dev.harness.scripted_engine import THREADS_VARIABLE, expected_scores, make_scripted_bundle
from hotslot.runner.v1 import runner_pb2
from inference.runner.main import main
from inference.runner.process import read_priority
from inference.server.runner_client.protocol import EndReason, RunnerEnding
from tests.runner.conftest import MakeRunner
from tests.runner.harness import THREADS, RunnerHarness

pytestmark = pytest.mark.asyncio

SLOW_CALLS = ["!slow 0.1"] * 100  # an item that keeps the device busy for longer than a test waits, in short calls


async def test_hello_names_process_and_devices(runner: RunnerHarness) -> None:
    """A started runner reports its process id and its devices."""
    await runner.start()
    assert runner.listener.hello == runner_pb2.Hello(pid=runner.process.pid, devices=["cpu"], precisions=["float32"])
    assert 5e6 < runner.process.resident_bytes < 60e6


async def test_hello_names_only_devices_that_the_policy_allows(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices that the settings exclude are not offered."""
    monkeypatch.setenv("SCRIPTED_DEVICES", "cuda:0,cuda:1,cpu")
    named = {}
    for policy in ("auto", "cpu", "cuda", "cuda:1"):
        runner = make_runner(device_policy=policy)
        await runner.start()
        assert runner.listener.hello is not None
        named[policy] = ",".join(runner.listener.hello.devices)
    assert named == {"auto": "cuda:0,cuda:1,cpu", "cpu": "cpu", "cuda": "cuda:0,cuda:1", "cuda:1": "cuda:1"}


async def test_load_reports_progress_and_a_measured_cost(runner: RunnerHarness) -> None:
    """Both phases are reported to their ends, and the outcome has the cost of a row."""
    outcome = await runner.load(row_seconds=0.002)
    assert not outcome.HasField("failure")
    assert (outcome.device, outcome.precision) == ("cpu", "float32")
    assert 0.002 <= outcome.row_seconds < 5.0
    assert {step.phase for step in runner.listener.progress if step.fraction == 1} == {"reading", "warming_up"}


async def test_a_long_warm_up_of_one_row_is_taken_as_its_cost(runner: RunnerHarness) -> None:
    """A load makes no second call that would take as long."""
    outcome = await runner.load(max_call_rows=1, warm_up_seconds=0.3, row_seconds=60.0)
    assert 0.3 <= outcome.row_seconds < 30.0


async def test_answers_are_the_engine_s_own(runner: RunnerHarness) -> None:
    """Every statement of every item gets its scores, in order."""
    await runner.load("r1")
    outcomes = await runner.ask(["a cat", "a dog"], ["a bird"], image=b"zoo")
    answered = [[(s.yes, s.no, s.maybe) for s in outcome.entailment.scores] for outcome in outcomes]
    wanted = [[expected_scores("r1", b"zoo", text) for text in item] for item in (["a cat", "a dog"], ["a bird"])]
    assert [[(s.yes, s.no, s.maybe) for s in item] for item in wanted] == answered


async def test_a_picture_of_16_mib_is_received(runner: RunnerHarness) -> None:
    """A frame far larger than a socket's buffer arrives complete."""
    await runner.load("r1")
    picture = os.urandom(16 << 20)
    [outcome] = await runner.ask(["large"], image=picture)
    assert expected_scores("r1", picture, "large").yes == outcome.entailment.scores[0].yes


async def test_32_statements_are_split_into_calls_and_answered_together(runner: RunnerHarness) -> None:
    """One request, several device calls with progress in between, one answer in order."""
    await runner.load("r1", max_call_rows=8)
    texts = [f"statement {number}" for number in range(32)]
    before = runner.listener.heartbeat.progress
    [outcome] = await runner.ask(texts)
    assert [expected_scores("r1", b"picture", text).yes for text in texts] == [
        score.yes for score in outcome.entailment.scores
    ]
    assert [call.rows for call in runner.listener.calls] == [8] * 4
    assert outcome.computed_rows == 32
    await runner.listener.until(lambda: runner.listener.heartbeat.progress >= before + 4)


async def test_an_invalid_item_does_not_affect_others(runner: RunnerHarness) -> None:
    """It is refused with reason and field; the others are answered."""
    await runner.load()
    outcomes = await runner.ask(["fine"], ["fine", "!refuse"], ["!nan"], ["!error"], ["!oom"], ["also fine"])
    assert [outcome.failure.reason for outcome in outcomes] == [
        "",
        "STATEMENT_REFUSED",
        "NOT_FINITE",
        "ENGINE_FAILED",
        "OUT_OF_MEMORY",
        "",
    ]
    assert outcomes[1].failure.field == "statements[1]"
    [unreadable] = await runner.ask(["fine"], image=b"!bad picture")
    assert (unreadable.failure.reason, unreadable.failure.field) == ("IMAGE_UNREADABLE", "image.content")


async def test_failure_messages_contain_no_class_and_no_path(runner: RunnerHarness) -> None:
    """They may be shown to callers."""
    await runner.load()
    for outcome in await runner.ask(["!error"], ["!oom"], ["!nan"]):
        assert not {"/", "Error", "Traceback", "on command"} & set(outcome.failure.message.split())
        assert "/" not in outcome.failure.message


async def test_calls_that_do_not_fit_are_split(runner: RunnerHarness) -> None:
    """A device that takes two rows at a time answers eight."""
    await runner.load("r1", max_call_rows=8, memory_rows=2)
    texts = [f"statement {number}" for number in range(8)]
    [outcome] = await runner.ask(texts)
    assert [expected_scores("r1", b"picture", text).yes for text in texts] == [
        score.yes for score in outcome.entailment.scores
    ]


async def test_cancelled_items_are_not_computed(runner: RunnerHarness) -> None:
    """One that waits behind a slow item ends as cancelled, the slow one after its current call; others are answered."""
    await runner.load(max_call_rows=1)
    [slow] = runner.send(SLOW_CALLS)
    await runner.listener.until(lambda: runner.listener.heartbeat.rows_on_step == 1)
    [unwanted, wanted] = runner.send(["!crash"], ["fine"])
    runner.process.cancel([unwanted, 999])
    await runner.listener.until(lambda: unwanted in runner.listener.outcomes)
    runner.process.cancel([slow])
    await runner.listener.until(lambda: {slow, wanted} <= set(runner.listener.outcomes))
    outcomes = [runner.listener.outcomes[item] for item in (slow, unwanted, wanted)]
    assert [outcome.failure.reason for outcome in outcomes] == ["CANCELLED", "CANCELLED", ""]
    assert 0 < outcomes[0].computed_rows < len(SLOW_CALLS)


async def test_expired_items_are_not_computed(runner: RunnerHarness) -> None:
    """Expired on arrival, or while waiting for a slow item."""
    await runner.load(max_call_rows=1)
    [late] = await runner.ask(["!crash"], seconds_left=0.0)
    assert late.failure.reason == "DEADLINE_EXPIRED"
    runner.send(SLOW_CALLS)
    await runner.listener.until(lambda: runner.listener.heartbeat.rows_on_step == 1)
    [waited] = await runner.ask(["!crash"], seconds_left=0.1)
    assert waited.failure.reason == "DEADLINE_EXPIRED"


async def test_a_heartbeat_reports_rows_and_seconds_of_the_device_call(runner: RunnerHarness) -> None:
    """Both are zero when the device is idle."""
    await runner.load()
    runner.send(["!slow 1"])
    await runner.listener.until(
        lambda: runner.listener.heartbeat.rows_on_step == 1 and runner.listener.heartbeat.seconds_on_step > 0.1
    )
    await runner.listener.until(lambda: runner.listener.heartbeat.rows_on_step == 0)
    assert runner.listener.heartbeat.seconds_on_step == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [("refused", "BUNDLE_BROKEN"), ("oom", "OUT_OF_MEMORY"), ("error", "LOAD_FAILED")]
)
async def test_a_failed_load_reports_its_reason(runner: RunnerHarness, fault: str, reason: str) -> None:
    """The process stays alive; the message contains no path."""
    outcome = await runner.load(fail_load=fault)
    assert outcome.failure.reason == reason
    assert str(runner.state) not in outcome.failure.message


async def test_a_changed_bundle_is_refused_as_broken(runner: RunnerHarness) -> None:
    """A file of another size than in the manifest is not opened."""
    bundle = make_scripted_bundle(runner.state, "r1")
    (bundle_folder(runner.state, bundle.bundle_digest) / "script.json").write_bytes(b"{}")
    outcome = await runner.load("r1")
    assert outcome.failure.reason == "BUNDLE_BROKEN"


async def test_a_bundle_of_an_unknown_engine_is_foreign(runner: RunnerHarness) -> None:
    """The reason differs from a broken bundle's, because another build may serve it."""
    bundle = make_scripted_bundle(runner.state, "r1")
    manifest = bundle_folder(runner.state, bundle.bundle_digest) / "bundle.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"scripted"', '"oracle"'), encoding="utf-8")
    outcome = await runner.load("r1")
    assert outcome.failure.reason == "BUNDLE_FOREIGN"


async def test_a_second_load_is_refused(runner: RunnerHarness) -> None:
    """A runner loads one model; the first one stays."""
    await runner.load("r1")
    runner.listener.loaded = None
    runner.begin_load("r2")
    await runner.listener.until(lambda: runner.listener.loaded)
    assert runner.listener.loaded is not None
    assert runner.listener.loaded.failure.reason == "LOAD_FAILED"
    [outcome] = await runner.ask(["a"])
    assert expected_scores("r1", b"picture", "a").yes == outcome.entailment.scores[0].yes


async def test_without_a_model_items_fail_one_by_one(runner: RunnerHarness) -> None:
    """Items that arrive before a load get outcomes."""
    await runner.start()
    outcomes = await runner.ask(["a"], ["b"])
    assert [outcome.failure.reason for outcome in outcomes] == ["ENGINE_FAILED"] * 2


async def test_retirement_answers_received_items_first(runner: RunnerHarness) -> None:
    """Then the process exits with 0."""
    await runner.load()
    ids = runner.send(["!slow 0.1"]) + runner.send(["a"]) + runner.send(["b"], ["c"], image=bytes(1 << 20))
    runner.process.retire()
    ending = await runner.ended()
    assert ending == RunnerEnding(EndReason.RETIRED, "exit code 0")
    assert ids == sorted(runner.listener.outcomes)


async def test_retirement_has_a_time_limit(make_runner: MakeRunner) -> None:
    """A runner that cannot finish is killed; the end still counts as a retirement."""
    runner = make_runner(retire_seconds=0.2)
    await runner.load()
    runner.send(["!hang"])
    runner.process.retire()
    ending = await runner.ended()
    # On a busy machine the time is over before the device call has begun, so `computing` may be empty.
    assert (ending.reason, ending.detail) == (EndReason.RETIRED, "killed: still running after 0.2 s")


@pytest.mark.parametrize("is_loading", [False, True])
async def test_a_runner_without_a_model_retires_at_once(runner: RunnerHarness, is_loading: bool) -> None:  # noqa: FBT001
    """A load that is no longer wanted is not finished."""
    await runner.start()
    if is_loading:
        runner.begin_load(fail_load="hang")
    runner.process.retire()
    ending = await runner.ended(limit_seconds=5)
    assert ending == RunnerEnding(EndReason.RETIRED, "exit code 0")


async def test_priority_is_lowered_until_the_runner_serves(make_runner: MakeRunner) -> None:
    """A standby yields to other processes; a serving runner has the server's priority, in all threads."""
    runner = make_runner(oom_score_adj=321)
    await runner.load()
    own_niceness, own_score = _importance(os.getpid())
    lowered = min(19, max(own_niceness) + 10) if read_priority(0).can_lower else max(own_niceness)
    assert _importance(runner.process.pid) == ({lowered}, min(1000, own_score + 321))
    runner.process.set_serving(True)
    await runner.listener.until(lambda: _importance(runner.process.pid) == ({max(own_niceness)}, own_score))


async def test_a_runner_of_copies_yields_the_cpus_until_it_serves(make_runner: MakeRunner) -> None:
    """All its threads run only when no other process wants a CPU; a standby's do not wait so long."""
    runner = make_runner()
    await runner.load()
    standby = _policies(runner.process.pid)
    yielding = os.SCHED_IDLE if read_priority(0).can_lower else os.SCHED_OTHER
    runner.process.yield_cpus()
    await runner.listener.until(lambda: _policies(runner.process.pid) == {yielding})
    runner.process.set_serving(True)
    await runner.listener.until(lambda: _policies(runner.process.pid) == {os.SCHED_OTHER})
    assert standby == {os.SCHED_OTHER}


async def test_a_runner_computes_on_one_thread_until_it_serves(
    make_runner: MakeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A serving runner uses all its threads from the first call."""
    log = tmp_path / "threads"
    monkeypatch.setenv(THREADS_VARIABLE, str(log))
    runner = make_runner(oom_score_adj=1)
    await runner.load()
    await runner.ask(["a"])
    runner.process.set_serving(True)
    _, own_score = _importance(os.getpid())
    await runner.listener.until(lambda: _importance(runner.process.pid)[1] == own_score)
    await runner.ask(["a"])
    await runner.ask(["a"])
    assert [int(line) for line in log.read_text().split()] == [1, THREADS]

    log.unlink()
    taker_over = make_runner()
    taker_over.process.spawn()
    taker_over.process.set_serving(True)
    await taker_over.listener.until(lambda: taker_over.listener.hello)
    taker_over.begin_load()
    await taker_over.listener.until(lambda: taker_over.listener.loaded)
    await taker_over.ask(["a"])
    assert [int(line) for line in log.read_text().split()] == [THREADS]


@pytest.mark.parametrize(("set_by_operator", "expected"), [(None, "10000"), ("7", "7")])
async def test_threads_of_a_call_spin_only_briefly(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, set_by_operator: str | None, expected: str
) -> None:
    """Unless the operator's environment sets it."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if set_by_operator:
        monkeypatch.setenv("GOMP_SPINCOUNT", set_by_operator)
    runner = make_runner()
    await runner.start()
    assert expected == _environment(runner.process.pid)["GOMP_SPINCOUNT"]


async def test_help_describes_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """For a person who finds the process in a list."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Started by the server" in capsys.readouterr().out


def _environment(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
    return dict(row.split("=", 1) for row in rows if row)


def _policies(pid: int) -> set[int]:
    return {os.sched_getscheduler(int(entry.name)) for entry in Path(f"/proc/{pid}/task").iterdir()}


def _importance(pid: int) -> tuple[set[int], int]:
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    niceness = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    return niceness, int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii"))
