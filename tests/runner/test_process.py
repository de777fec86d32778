"""A real runner that behaves: hello, load, batches, cancel, expiry, retirement."""

import os
import signal
from pathlib import Path

import pytest

from common.bundle import bundle_folder
from hotslot.runner.v1 import runner_pb2
from inference.runner.main import main
from inference.runner.process import read_priority
from inference.server.runner_client.process import EndReason, RunnerEnding
from tests.runner.conftest import MakeStage
from tests.runner.stage import THREADS, Stage
from tests.scripted_engine import THREADS_VARIABLE, expected_scores, make_scripted_bundle

pytestmark = pytest.mark.asyncio


async def test_hello_names_process_and_devices(stage: Stage) -> None:
    """A runner that stands says who it is and what it can compute on."""
    await stage.stand()
    assert stage.ear.hello == runner_pb2.Hello(pid=stage.process.pid, devices=["cpu"], precisions=["float32"])
    assert 5e6 < stage.process.resident_bytes < 60e6


async def test_hello_names_only_devices_that_the_policy_allows(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What settings forbid is not offered."""
    monkeypatch.setenv("SCRIPTED_DEVICES", "cuda:0,cuda:1,cpu")
    named = {}
    for policy in ("auto", "cpu", "cuda", "cuda:1"):
        stage = make_stage(device_policy=policy)
        await stage.stand()
        assert stage.ear.hello is not None
        named[policy] = ",".join(stage.ear.hello.devices)
    assert named == {"auto": "cuda:0,cuda:1,cpu", "cpu": "cpu", "cuda": "cuda:0,cuda:1", "cuda:1": "cuda:1"}


async def test_load_reports_progress_and_a_measured_cost(stage: Stage) -> None:
    """Both phases are seen to their ends, and the cost of a row is known afterwards."""
    outcome = await stage.load(row_seconds=0.002)
    assert not outcome.HasField("failure")
    assert (outcome.device, outcome.precision) == ("cpu", "float32")
    assert 0.002 <= outcome.row_seconds < 0.05
    assert {step.phase for step in stage.ear.progress if step.fraction == 1} == {"reading", "warming_up"}


async def test_a_long_warm_up_of_one_row_is_its_cost(stage: Stage) -> None:
    """A load waits for no second call that would take as long."""
    outcome = await stage.load(max_call_rows=1, warm_up_seconds=0.3, row_seconds=60.0)
    assert 0.3 <= outcome.row_seconds < 30.0


async def test_answers_are_the_engine_s_own(stage: Stage) -> None:
    """Every statement of every item gets its scores, in order."""
    await stage.load("r1")
    outcomes = await stage.ask(["a cat", "a dog"], ["a bird"], image=b"zoo")
    answered = [[(s.yes, s.no, s.maybe) for s in outcome.entailment.scores] for outcome in outcomes]
    wanted = [[expected_scores("r1", b"zoo", text) for text in item] for item in (["a cat", "a dog"], ["a bird"])]
    assert [[(s.yes, s.no, s.maybe) for s in item] for item in wanted] == answered


async def test_a_picture_of_16_mib_comes_through(stage: Stage) -> None:
    """A frame far larger than a socket's buffer arrives whole."""
    await stage.load("r1")
    picture = os.urandom(16 << 20)
    [outcome] = await stage.ask(["large"], image=picture)
    assert expected_scores("r1", picture, "large").yes == outcome.entailment.scores[0].yes


async def test_32_statements_are_cut_into_calls_and_answered_whole(stage: Stage) -> None:
    """One request, several device calls with progress in between, one answer in order."""
    await stage.load("r1", max_call_rows=8)
    texts = [f"statement {number}" for number in range(32)]
    before = stage.ear.heartbeat.progress
    [outcome] = await stage.ask(texts)
    assert [expected_scores("r1", b"picture", text).yes for text in texts] == [
        score.yes for score in outcome.entailment.scores
    ]
    assert stage.ear.replies[-1].rows == 32
    assert stage.ear.replies[-1].done
    await stage.ear.until(lambda: stage.ear.heartbeat.progress >= before + 4)


async def test_a_bad_item_costs_its_neighbours_nothing(stage: Stage) -> None:
    """Refused with reason and field; the others are answered."""
    await stage.load()
    outcomes = await stage.ask(["fine"], ["fine", "!refuse"], ["!nan"], ["!error"], ["!oom"], ["also fine"])
    assert [outcome.failure.reason for outcome in outcomes] == [
        "",
        "STATEMENT_REFUSED",
        "NOT_FINITE",
        "ENGINE_FAILED",
        "OUT_OF_MEMORY",
        "",
    ]
    assert outcomes[1].failure.field == "statements[1]"
    [unreadable] = await stage.ask(["fine"], image=b"!bad picture")
    assert (unreadable.failure.reason, unreadable.failure.field) == ("IMAGE_UNREADABLE", "image.content")


async def test_failures_tell_no_class_and_no_path(stage: Stage) -> None:
    """What reaches the server may reach a caller."""
    await stage.load()
    for outcome in await stage.ask(["!error"], ["!oom"], ["!nan"]):
        assert not {"/", "Error", "Traceback", "on command"} & set(outcome.failure.message.split())
        assert "/" not in outcome.failure.message


async def test_calls_that_do_not_fit_are_split(stage: Stage) -> None:
    """A device that takes two rows at a time answers eight."""
    await stage.load("r1", max_call_rows=8, memory_rows=2)
    texts = [f"statement {number}" for number in range(8)]
    [outcome] = await stage.ask(texts)
    assert [expected_scores("r1", b"picture", text).yes for text in texts] == [
        score.yes for score in outcome.entailment.scores
    ]


async def test_cancelled_items_are_not_computed(stage: Stage) -> None:
    """Items behind a slow one, cancelled meanwhile, end as cancelled; the others are answered."""
    await stage.load()
    [slow] = stage.send(["!slow 0.3"])
    [unwanted, wanted] = stage.send(["!crash"], ["fine"])
    await stage.ear.until(lambda: stage.ear.heartbeat.batch_id == 1)
    stage.process.cancel([unwanted, 999])
    await stage.ear.until(lambda: {slow, unwanted, wanted} <= set(stage.ear.outcomes))
    reasons = [stage.ear.outcomes[item].failure.reason for item in (slow, unwanted, wanted)]
    assert reasons == ["", "CANCELLED", ""]


async def test_expired_items_are_not_computed(stage: Stage) -> None:
    """Time over on arrival, or while waiting behind a slow one."""
    await stage.load()
    [late] = await stage.ask(["!crash"], seconds_left=0.0)
    assert late.failure.reason == "DEADLINE_EXPIRED"
    stage.send(["!slow 0.3"])
    [waited] = await stage.ask(["!crash"], seconds_left=0.1)
    assert waited.failure.reason == "DEADLINE_EXPIRED"


async def test_a_heartbeat_tells_how_long_the_device_is_at_it(stage: Stage) -> None:
    """Batch and seconds come from the device thread; both are nothing when it rests."""
    await stage.load()
    stage.send(["!slow 0.3"])
    await stage.ear.until(lambda: stage.ear.heartbeat.batch_id == 1 and stage.ear.heartbeat.seconds_on_step > 0.1)
    await stage.ear.until(lambda: stage.ear.heartbeat.batch_id == 0)
    assert stage.ear.heartbeat.seconds_on_step == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [("refused", "BUNDLE_BROKEN"), ("oom", "OUT_OF_MEMORY"), ("error", "LOAD_FAILED")]
)
async def test_a_load_that_fails_says_why(stage: Stage, fault: str, reason: str) -> None:
    """The process stays and tells; its sentence holds no path."""
    outcome = await stage.load(fail_load=fault)
    assert outcome.failure.reason == reason
    assert str(stage.state) not in outcome.failure.message


async def test_a_bundle_that_is_not_what_it_was_is_broken(stage: Stage) -> None:
    """A file that has another size than the manifest says is not opened."""
    bundle = make_scripted_bundle(stage.state, "r1")
    (bundle_folder(stage.state, bundle.bundle_digest) / "script.json").write_bytes(b"{}")
    outcome = await stage.load("r1")
    assert outcome.failure.reason == "BUNDLE_BROKEN"


async def test_a_bundle_of_an_unknown_engine_is_foreign(stage: Stage) -> None:
    """Told apart from a broken one: another build may serve it."""
    bundle = make_scripted_bundle(stage.state, "r1")
    manifest = bundle_folder(stage.state, bundle.bundle_digest) / "bundle.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"scripted"', '"oracle"'), encoding="utf-8")
    outcome = await stage.load("r1")
    assert outcome.failure.reason == "BUNDLE_FOREIGN"


async def test_a_second_load_is_refused(stage: Stage) -> None:
    """A runner holds one model in its life; the first one stays."""
    await stage.load("r1")
    stage.ear.loaded = None
    stage.begin_load("r2")
    await stage.ear.until(lambda: stage.ear.loaded)
    assert stage.ear.loaded is not None
    assert stage.ear.loaded.failure.reason == "LOAD_FAILED"
    [outcome] = await stage.ask(["a"])
    assert expected_scores("r1", b"picture", "a").yes == outcome.entailment.scores[0].yes


async def test_without_a_model_items_fail_one_by_one(stage: Stage) -> None:
    """A batch that comes too early is answered, not lost."""
    await stage.stand()
    outcomes = await stage.ask(["a"], ["b"])
    assert [outcome.failure.reason for outcome in outcomes] == ["ENGINE_FAILED"] * 2
    assert stage.ear.replies[-1].done


async def test_retiring_answers_first_what_has_come(stage: Stage) -> None:
    """Batches that were sent before are all answered, then the process ends with 0."""
    await stage.load()
    ids = stage.send(["!slow 0.1"]) + stage.send(["a"]) + stage.send(["b"], ["c"], image=bytes(1 << 20))
    stage.process.retire()
    ending = await stage.ended()
    assert ending == RunnerEnding(EndReason.RETIRED, "exit code 0", 0)
    assert ids == sorted(stage.ear.outcomes)


async def test_retiring_has_a_limit(make_stage: MakeStage) -> None:
    """A runner that cannot finish is killed; that is still a retirement."""
    stage = make_stage(retire_seconds=0.2)
    await stage.load()
    stage.send(["!hang"])
    stage.process.retire()
    ending = await stage.ended()
    assert (ending.reason, ending.exit_code) == (EndReason.RETIRED, -signal.SIGKILL)


@pytest.mark.parametrize("is_loading", [False, True])
async def test_a_runner_without_a_model_retires_at_once(stage: Stage, is_loading: bool) -> None:  # noqa: FBT001
    """Nobody waits for a load that is not wanted any more."""
    await stage.stand()
    if is_loading:
        stage.begin_load(fail_load="hang")
    stage.process.retire()
    ending = await stage.ended(limit_seconds=5)
    assert (ending.reason, ending.exit_code) == (EndReason.RETIRED, 0)


async def test_importance_is_lowered_until_the_runner_serves(make_stage: MakeStage) -> None:
    """A runner that nobody waits for yields to others; a serving one is as important as the server, in all threads."""
    stage = make_stage(oom_score_adj=321)
    await stage.load()
    own_niceness, own_score = _importance(os.getpid())
    lowered = min(19, max(own_niceness) + 10) if read_priority(0).can_lower else max(own_niceness)
    assert _importance(stage.process.pid) == ({lowered}, min(1000, own_score + 321))
    stage.process.set_serving(True)
    await stage.ear.until(lambda: _importance(stage.process.pid) == ({max(own_niceness)}, own_score))


async def test_one_thread_computes_until_callers_wait_for_the_runner(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several would wait for each other behind those that serve; what callers wait for takes all from the first."""
    log = tmp_path / "threads"
    monkeypatch.setenv(THREADS_VARIABLE, str(log))
    stage = make_stage(oom_score_adj=1)
    await stage.load()
    await stage.ask(["a"])
    stage.process.set_serving(True)
    _, own_score = _importance(os.getpid())
    await stage.ear.until(lambda: _importance(stage.process.pid)[1] == own_score)
    await stage.ask(["a"])
    await stage.ask(["a"])
    assert [int(line) for line in log.read_text().split()] == [1, THREADS]

    log.unlink()
    taker_over = make_stage()
    taker_over.process.spawn()
    taker_over.process.set_serving(True)
    await taker_over.ear.until(lambda: taker_over.ear.hello)
    taker_over.begin_load()
    await taker_over.ear.until(lambda: taker_over.ear.loaded)
    await taker_over.ask(["a"])
    assert [int(line) for line in log.read_text().split()] == [THREADS]


@pytest.mark.parametrize(("set_by_operator", "expected"), [(None, "10000"), ("7", "7")])
async def test_threads_of_a_call_do_not_wait_turning_for_long(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch, set_by_operator: str | None, expected: str
) -> None:
    """Unless an operator knows better."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if set_by_operator:
        monkeypatch.setenv("GOMP_SPINCOUNT", set_by_operator)
    stage = make_stage()
    await stage.stand()
    assert expected == _environment(stage.process.pid)["GOMP_SPINCOUNT"]


async def test_help_explains_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever finds the process in a list can ask what it is."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Started by the server" in capsys.readouterr().out


def _environment(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
    return dict(row.split("=", 1) for row in rows if row)


def _importance(pid: int) -> tuple[set[int], int]:
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    niceness = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    return niceness, int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii"))
