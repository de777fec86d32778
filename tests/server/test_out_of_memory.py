"""A card that runs out of memory, on real processes: the rows of docs/explanation/decisions/out-of-memory.md.

The card is simulated: an engine that says it has one, and has no memory on it when it is told to. A file, named
by the fixture `card`, is the card that others have filled: while it is there, no load fits.
"""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from dev.harness.answers import question
from dev.harness.load import LoadReport
from dev.harness.metrics import value_of
from dev.harness.scripted_engine import CARD_BYTES, CARD_USED_VARIABLE, DEVICES_VARIABLE
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of

CARD, CPU = "cuda:0", "cpu"
FULL = "!oom@cuda:0"  # a single item that does not fit on the card
GIB = 1 << 30
_numbers = itertools.count(1)
LOADS = pytest.mark.parametrize("where", ["fail_load", "fail_warm_up"])

pytestmark = [pytest.mark.fault("K14"), pytest.mark.timeout(120)]


class FilledCard:
    """A simulated GPU on which no load fits while it is full."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Others take what is left of it."""
        self.path.touch()

    def clear(self) -> None:
        """Others free memory."""
        self.path.unlink()

    def script(self, where: str = "fail_load") -> dict[str, str]:
        """A bundle that runs out of memory while it is loaded or warmed up."""
        return {where: "oom", "fail_while": str(self.path), "faulty_devices": "cuda"}


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process reports a GPU."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")


@pytest.fixture
def card(tmp_path: Path) -> Iterator[FilledCard]:
    """The card, not full yet, and not at the end."""
    filled = FilledCard(tmp_path / "full")
    yield filled
    filled.path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server with a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")
        stack = Stack(tmp_path_factory.mktemp("card"))
        stack.bundle("r2")
        with stack:
            yield stack


@pytest.fixture
def carded(shared: Stack) -> Stack:
    """The shared server, with r1 alone on the GPU."""
    put_back(shared)
    return shared


def put_back(stack: Stack) -> None:
    """Load r1 alone on the GPU, by control calls."""
    state = stack.control.status()
    if state.trial.previous_load_id:
        stack.control.activate(state.trial.previous_load_id)
    if stack.control.other().load_id:
        stack.control.retire(stack.control.other().load_id)
    if (stack.control.active().revision, stack.control.active().device) != ("r1", CARD):
        (*_, loaded) = stack.control.load(stack.answers.digest_of("r1"), CARD)
        stack.control.activate(loaded.load_id)
        stack.control.commit(loaded.load_id)
        stack.control.retire(stack.control.other().load_id)
    calm_on(stack, CARD)
    assert fallback_of(stack)[0] == ""


def serve(stack: Stack, **script: Any) -> str:  # noqa: ANN401  fields of Script
    """Load and commit a revision with a script, alone; returns its name."""
    revision = f"r1-{next(_numbers)}"
    stack.serve(revision, **script)
    calm_on(stack, CARD, revision)
    return revision


def answered(stack: Stack, statement: str = "there are two birds") -> tuple[str, str]:
    """Revision and device of an answer, which is the right one."""
    asked = question(statement)
    revision = stack.check(asked)
    served = stack.predict(asked).served_by
    assert served.revision == revision
    return revision, served.device


def fallback_of(stack: Stack) -> tuple[str, str, str]:
    """The CPU fallback in the control status: from, to, reason; empty strings if there is none."""
    row = stack.control.status().cpu_fallback
    return row.device, row.fallback_device, row.reason


def counted_shortages(stack: Stack, digest: str) -> int:
    """The counter of requests that a bundle had no memory for on the GPU."""
    rows = [row for row in stack.control.status().stats if (row.bundle_digest, row.device) == (digest, CARD)]
    return sum(row.failed["OUT_OF_MEMORY"] for row in rows)


def calm_on(stack: Stack, device: str, revision: str = "r1") -> None:
    """Wait until one slot is loaded on a device and the other is a standby."""
    stack.wait_calm()
    assert (stack.control.active().revision, stack.control.active().device) == (revision, device)
    assert answered(stack) == (revision, device)


class Watched:
    """Polls health in a thread."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self.states: set[bool] = set()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join(20)

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            self.states.add(self._stack.is_serving())
            is_over = self._over.wait(0.01)


def assert_nothing_lost(report: LoadReport) -> None:
    """Every request got the right answer."""
    assert (report.failed, report.wrong) == ([], [])


# A load that runs out.


@LOADS
def test_a_boot_on_a_full_card_serves_from_the_cpu(make_stack: MakeStack, card: FilledCard, where: str) -> None:
    """NOT_SERVING until the CPU answers; answers, status, metrics and log name the CPU."""
    card.fill()
    stack = make_stack(script=card.script(where))

    calm_on(stack, CPU)

    assert fallback_of(stack) == (CARD, CPU, "OUT_OF_MEMORY")
    told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=10).capabilities[0]
    assert (told.ready, told.level) == (True, status_pb2.HEALTH_LEVEL_DEGRADED)
    assert "cuda:0 ran out of memory" in told.reason
    assert (told.fallback.device, told.fallback.fallback_device) == (CARD, CPU)
    labels = {"model": "shapes", "device": CARD, "fallback_device": CPU}
    assert value_of(stack, "hotslot_cpu_fallback", **labels) == 1
    assert value_of(stack, "hotslot_cpu_fallbacks_total", **labels) == 1
    assert value_of(stack, "hotslot_load_failures_total", model="shapes", device=CARD, reason="OUT_OF_MEMORY") == 1
    event = stack.process.wait_event("cpu_fallback_taken")
    assert (event["device"], event["fallback_device"], event["level"]) == (CARD, CPU, "warning")


def test_a_load_that_the_plan_refuses_falls_back_as_well(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine, which would crash, is not called."""
    monkeypatch.setenv(CARD_USED_VARIABLE, str(CARD_BYTES - GIB))
    script = {"needs_bytes": 2 * GIB, "fail_load": "crash", "faulty_devices": "cuda"}
    stack = make_stack(script=script)

    calm_on(stack, CPU)
    assert fallback_of(stack) == (CARD, CPU, "DOES_NOT_FIT")


@LOADS
def test_an_active_model_that_no_longer_fits_beside_a_candidate(carded: Stack, card: FilledCard, where: str) -> None:
    """Its runner dies and the GPU is full: requests wait, the CPU answers them, the candidate stays."""
    stack, revision = carded, serve(carded, **card.script(where))
    candidate = stack.control.candidate(stack.answers.digest_of("r2"))
    card.fill()

    with stack.load((revision,), clients=2) as load:
        stack.kill(stack.active_pid())
        eventually(lambda: stack.control.active().device == CPU and stack.is_serving(), what="the CPU answers")
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    assert answered(stack) == (revision, CPU)
    assert fallback_of(stack)[:2] == (CARD, CPU)
    assert (stack.control.other().load_id, stack.control.other().role) == (candidate, "CANDIDATE")


@LOADS
def test_a_trial_that_no_longer_fits_is_rolled_back(carded: Stack, card: FilledCard, where: str) -> None:
    """Its runner dies and does not fit again: the previous slot answers, without a fallback."""
    stack, revision = carded, f"r-large-{where}"
    stack.control.trial(stack.bundle(revision, **card.script(where)).bundle_digest)
    card.fill()

    with stack.load(("r1", revision), clients=2) as load:
        stack.kill(stack.active_pid())
        eventually(lambda: not stack.control.status().HasField("trial"), what="the trial ends")
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    ended = stack.control.status().last_trial
    assert (ended.outcome, ended.reason) == ("ROLLED_BACK", "OUT_OF_MEMORY")
    assert (answered(stack), fallback_of(stack)[0]) == (("r1", CARD), "")
    stack.wait_calm()


@LOADS
def test_a_previous_model_that_no_longer_fits_moves_to_the_cpu(carded: Stack, card: FilledCard, where: str) -> None:
    """The trial keeps answering; its commit on the GPU ends the fallback."""
    stack, revision = carded, serve(carded, **card.script(where))
    load_id = stack.control.trial(stack.answers.digest_of("r2"))
    card.fill()

    with stack.load((revision, "r2"), clients=2) as load:
        stack.kill(stack.control.other().pid)
        eventually(
            lambda: (stack.control.other().state, stack.control.other().device) == ("LOADED", CPU), what="it is back"
        )
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    assert (answered(stack), answered(stack, "!error@r2")) == (("r2", CARD), (revision, CPU))
    assert fallback_of(stack)[:2] == (CARD, CPU)
    assert not stack.control.commit(load_id).HasField("cpu_fallback")


@LOADS
def test_an_active_model_that_no_longer_fits_beside_a_warm_one(carded: Stack, card: FilledCard, where: str) -> None:
    """It reloads on the CPU in its own slot; the previous model stays loaded."""
    stack, revision = carded, f"r-new-{where}"
    stack.control.commit(stack.control.trial(stack.bundle(revision, **card.script(where)).bundle_digest))
    card.fill()

    with stack.load((revision,), clients=2) as load:
        stack.kill(stack.active_pid())
        eventually(lambda: stack.control.active().device == CPU and stack.is_serving(), what="the CPU answers")
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    assert (stack.control.other().revision, stack.control.other().role) == ("r1", "PREVIOUS")
    assert fallback_of(stack)[:2] == (CARD, CPU)


@pytest.mark.fault("S4")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"needs_bytes": 70 * GIB, "fail_load": "crash"}, "DOES_NOT_FIT"),
        ({"needs_bytes": GIB, "fail_load": "oom"}, "OUT_OF_MEMORY"),
        ({"needs_bytes": GIB, "fail_warm_up": "oom"}, "OUT_OF_MEMORY"),
    ],
    ids=["plan", "load", "warm-up"],
)
def test_a_candidate_that_does_not_fit_is_refused_with_the_numbers(
    carded: Stack, script: dict[str, Any], reason: str
) -> None:
    """LoadSlot reports needed and free bytes; callers and health are not affected."""
    pid = carded.active_pid()
    big = carded.bundle("r-big", **script)

    with carded.load(clients=2) as load, Watched(carded) as watched:
        with pytest.raises(grpc.RpcError) as error:
            carded.control.load(big.bundle_digest)
        load.wait_answers(20)

    refusal = refusal_of(error.value)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", reason)
    assert refusal.metadata["device"] == CARD
    assert int(refusal.metadata["needed_bytes"]) == round(script["needs_bytes"] * 1.1)
    assert int(refusal.metadata["free_bytes"]) == 72 * GIB
    assert_nothing_lost(load.report())
    assert (watched.states, carded.active_pid(), fallback_of(carded)[0]) == ({True}, pid, "")
    calm_on(carded, CARD)


# A batch that runs out.


@pytest.mark.parametrize("beside", ["nothing", "candidate", "trial", "previous"])
def test_a_batch_that_does_not_fit_is_split(carded: Stack, beside: str) -> None:
    """All items are answered on the GPU, whatever the other slot holds."""
    script = {"memory_rows": 2, "faulty_devices": "cuda"}
    stack, first = carded, serve(carded, **script)
    other = stack.bundle("r-batch", **script)
    if beside == "candidate":
        stack.control.candidate(other.bundle_digest)
    elif beside != "nothing":
        load_id = stack.control.trial(other.bundle_digest)
        if beside == "previous":
            stack.control.commit(load_id)
    statements = tuple(f"there are {number} birds" for number in range(16))
    before = stack.control.status()

    with Watched(stack) as watched:
        revision = stack.check(question(*statements))

    assert (revision, watched.states) == ("r-batch" if beside in ("trial", "previous") else first, {True})
    after = stack.control.status()
    assert (after.generation, fallback_of(stack)[0]) == (before.generation, "")
    assert [slot.role for slot in after.slots] == [slot.role for slot in before.slots]


# A single item that runs out.


def test_a_single_item_that_does_not_fit_is_answered_by_the_cpu(carded: Stack) -> None:
    """Its caller waits for the CPU; all others are answered meanwhile, and health is correct throughout."""
    pid, before = carded.active_pid(), counted_shortages(carded, carded.answers.digest_of("r1"))
    with carded.load(clients=2) as load, Watched(carded) as watched:
        assert answered(carded, FULL) == ("r1", CPU)
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    assert watched.states == {True}
    calm_on(carded, CPU)
    assert fallback_of(carded) == (CARD, CPU, "OUT_OF_MEMORY")
    eventually(lambda: pid not in carded.process.living(), what="its process is ended")
    assert counted_shortages(carded, carded.answers.digest_of("r1")) == before + 1


@pytest.mark.parametrize("is_loading", [True, False], ids=["loading", "loaded"])
def test_a_candidate_yields_its_slot_to_the_cpu_fallback(carded: Stack, is_loading: bool) -> None:  # noqa: FBT001
    """A load in progress fails with LOAD_YIELDED and can be repeated later."""
    call: Any = None
    if is_loading:
        call = carded.control.begin_load(carded.bundle("r-slow", load_seconds=20.0).bundle_digest)
        eventually(lambda: carded.control.other().state == "LOADING", what="the load has begun")
    else:
        carded.control.candidate(carded.answers.digest_of("r2"))

    with Watched(carded) as watched:
        assert answered(carded, FULL) == ("r1", CPU)

    assert watched.states == {True}
    if is_loading:
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        assert refusal_of(error.value).brief == ("ABORTED", "LOAD_YIELDED", ())
    calm_on(carded, CPU)
    assert carded.control.candidate(carded.answers.digest_of("r2"))


def test_a_trial_without_memory_is_rolled_back(carded: Stack) -> None:
    """One item is enough, since the previous slot has answered it; no fallback follows."""
    digest = carded.answers.digest_of("r2")
    before = counted_shortages(carded, digest)
    carded.control.trial(digest)

    with Watched(carded) as watched:
        assert carded.check(question("!oom@r2")) == "r1"

    state = carded.control.status()
    assert (state.last_trial.outcome, state.last_trial.reason) == ("ROLLED_BACK", "OUT_OF_MEMORY")
    assert (state.last_trial.bundle_digest, state.HasField("trial")) == (digest, False)
    assert counted_shortages(carded, digest) == before + 1
    assert (watched.states, answered(carded), fallback_of(carded)[0]) == ({True}, ("r1", CARD), "")


def test_a_trial_and_its_previous_slot_without_memory_fall_back(carded: Stack) -> None:
    """The trial yields its slot without being counted as failed; the previous revision answers from the CPU."""
    digest = carded.answers.digest_of("r2")
    before = counted_shortages(carded, digest)
    carded.control.trial(digest)

    with carded.load(("r1", "r2"), clients=2) as load, Watched(carded) as watched:
        assert answered(carded, FULL) == ("r1", CPU)
        load.wait_answers(20)

    assert_nothing_lost(load.report())
    ended = carded.control.status().last_trial
    assert (ended.outcome, ended.reason, ended.bundle_digest) == ("YIELDED", "OUT_OF_MEMORY", digest)
    assert counted_shortages(carded, digest) == before, "nobody's fault"
    assert watched.states == {True}
    calm_on(carded, CPU)


def test_a_previous_model_yields_its_slot_to_the_cpu_fallback(carded: Stack) -> None:
    """After a commit the previous model is not needed."""
    carded.control.commit(carded.control.trial(carded.answers.digest_of("r2")))
    assert carded.control.other().role == "PREVIOUS"

    with Watched(carded) as watched:
        assert answered(carded, FULL) == ("r2", CPU)

    assert watched.states == {True}
    calm_on(carded, CPU, "r2")


# The way back.


@pytest.fixture
def fallen(carded: Stack) -> Stack:
    """A server with a CPU fallback."""
    answered(carded, FULL)
    calm_on(carded, CPU)
    return carded


@LOADS
def test_a_failback_that_does_not_fit_is_refused(carded: Stack, card: FilledCard, where: str) -> None:
    """The CPU keeps answering, and the fallback stays."""
    stack, revision = carded, serve(carded, **card.script(where))
    answered(stack, FULL)
    calm_on(stack, CPU, revision)
    card.fill()

    with Watched(stack) as watched, pytest.raises(grpc.RpcError) as error:
        stack.control.load(stack.answers.digest_of(revision), CARD)

    refusal = refusal_of(error.value)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
    assert (watched.states, fallback_of(stack)[:2]) == ({True}, (CARD, CPU))
    calm_on(stack, CPU, revision)


def test_a_failback_beside_a_candidate_has_no_free_slot(fallen: Stack) -> None:
    """It can be tried later; candidates load on the active device."""
    fallen.control.candidate(fallen.answers.digest_of("r2"))
    assert fallen.control.other().device == CPU

    with pytest.raises(grpc.RpcError) as error:
        fallen.control.load(fallen.answers.digest_of("r1"), CARD)
    assert refusal_of(error.value).brief[:2] == ("FAILED_PRECONDITION", "NO_FREE_SLOT")
    assert fallback_of(fallen)[:2] == (CARD, CPU)


@pytest.mark.fault("B12")
def test_a_failback_without_memory_for_an_item_is_rolled_back(fallen: Stack) -> None:
    """The CPU slot answers the item, and the fallback stays."""
    (*_, loaded) = fallen.control.load(fallen.answers.digest_of("r1"), CARD)
    fallen.control.activate(loaded.load_id)
    assert fallen.control.active().device == CARD

    with Watched(fallen) as watched:
        assert answered(fallen, FULL) == ("r1", CPU)

    ended = fallen.control.status().last_trial
    assert (ended.outcome, ended.reason) == ("ROLLED_BACK", "OUT_OF_MEMORY")
    assert (watched.states, fallback_of(fallen)[:2]) == ({True}, (CARD, CPU))


def test_a_committed_failback_ends_the_fallback(fallen: Stack) -> None:
    """The same bundle is loaded on the GPU, activated and committed."""
    digest = fallen.answers.digest_of("r1")
    (*_, loaded) = fallen.control.load(digest, CARD)
    assert fallen.control.load(digest, CARD)[-1].load_id == loaded.load_id, "asked again, the same load"

    assert fallen.control.activate(loaded.load_id).HasField("cpu_fallback"), "a trial proves nothing yet"
    assert not fallen.control.commit(loaded.load_id).HasField("cpu_fallback")

    assert answered(fallen) == ("r1", CARD)
    assert not (fallen.folder / "fallbacks.json").exists()
    labels = {"model": "shapes", "device": CARD, "fallback_device": CPU}
    assert value_of(fallen, "hotslot_cpu_fallback", **labels) == 0


def test_after_a_failback_the_loaded_cpu_slot_takes_over_at_once(fallen: Stack) -> None:
    """No load is needed: the CPU slot is still loaded."""
    (*_, loaded) = fallen.control.load(fallen.answers.digest_of("r1"), CARD)
    fallen.control.activate(loaded.load_id)
    fallen.control.commit(loaded.load_id)
    warm = fallen.control.other()
    loads = value_of(fallen, "hotslot_load_seconds_count")

    with Watched(fallen) as watched:
        assert answered(fallen, FULL) == ("r1", CPU)

    assert fallen.control.active().load_id == warm.load_id
    assert value_of(fallen, "hotslot_load_seconds_count") == loads
    assert (watched.states, fallback_of(fallen)[:2]) == ({True}, (CARD, CPU))
    calm_on(fallen, CPU)


# What stays.


@pytest.mark.fault("B11")
def test_a_restarted_server_starts_on_the_cpu(make_stack: MakeStack) -> None:
    """After a kill and a restart no second shortage occurs."""
    fallen = make_stack()
    answered(fallen, FULL)
    calm_on(fallen, CPU)
    since = fallen.control.status().cpu_fallback.since
    fallen.hang_up()
    fallen.process.destroy()
    fallen.start()

    calm_on(fallen, CPU)
    assert fallen.control.status().cpu_fallback.since == since
    assert [row["device"] for row in fallen.process.events("load_begun")] == [CPU]
    assert not fallen.process.events("load_failed")
    kept = fallen.process.wait_event("cpu_fallback_kept")
    assert (kept["device"], kept["level"]) == (CARD, "warning")
    assert value_of(fallen, "hotslot_cpu_fallback", model="shapes", device=CARD, fallback_device=CPU) == 1


@pytest.fixture
def forbidding(make_stack: MakeStack, card: FilledCard) -> Stack:
    """A server with cpu_fallback = "forbid"."""
    stack = make_stack(script=card.script(), model={"cpu_fallback": "forbid"}, server={"self_test_seconds": 0.5})
    assert answered(stack) == ("r1", CARD)
    return stack


def test_without_cpu_fallback_the_request_fails(forbidding: Stack) -> None:
    """RESOURCE_EXHAUSTED with a retry delay; other requests are answered by the GPU."""
    with pytest.raises(grpc.RpcError) as error:
        forbidding.predict(question(FULL))

    refusal = refusal_of(error.value)
    assert refusal.brief == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", ())
    assert refusal.retry_seconds == 1.0
    assert forbidding.is_serving()
    assert (answered(forbidding), fallback_of(forbidding)[0]) == (("r1", CARD), "")


def test_without_cpu_fallback_a_full_card_is_not_ready(forbidding: Stack, card: FilledCard) -> None:
    """The model is ready again once it fits."""
    card.fill()
    forbidding.kill(forbidding.active_pid())
    eventually(lambda: not forbidding.is_serving(), what="health says so")
    forbidding.process.wait_event("load_failed")

    card.clear()
    forbidding.wait_ready()
    assert (answered(forbidding), fallback_of(forbidding)[0]) == (("r1", CARD), "")
