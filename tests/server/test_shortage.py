"""The decision after a memory shortage, and the CPU fallback with simulated runners."""

import json
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from common.errors import Conflict, DeadlineMissed, HotslotError, Interrupted, Overloaded
from inference.server.events import CpuFallbackChanged
from inference.server.model.fallback_file import FILE_NAME, MAX_FILE_BYTES, CpuFallbackFile
from inference.server.model.pair import CpuFallbackRow, Role
from inference.server.model.policy import (
    DeviceRules,
    ShortageAction,
    SlotFacts,
    decide_after_item,
    decide_after_load,
)
from inference.server.model.stats import StatsKey
from inference.server.model.step import PAUSE_SECONDS
from tests.server.simulator import World

CARD, CPU = "cuda:0", "cpu"
SHORT = "!OUT_OF_MEMORY"  # everywhere
SHORT_ON_CARD = f"{SHORT}@{CARD}"
ALLOW, FORBID = DeviceRules("auto", allow_cpu_fallback=True), DeviceRules("auto", allow_cpu_fallback=False)

A_CARD = SlotFacts(Role.ACTIVE, CARD)
NOTHING = SlotFacts(Role.FREE)


@pytest.mark.parametrize(
    ("slot", "other", "other_failed", "action"),
    [
        (A_CARD, NOTHING, False, ShortageAction.FALL_BACK_TO_CPU),
        (A_CARD, SlotFacts(Role.CANDIDATE, CARD), False, ShortageAction.FALL_BACK_TO_CPU),
        (
            A_CARD,
            SlotFacts(Role.PREVIOUS, CARD),
            False,
            ShortageAction.FALL_BACK_TO_CPU,
        ),  # the other revision serves no callers
        (A_CARD, SlotFacts(Role.FALLBACK, CPU), False, ShortageAction.FALL_BACK_TO_CPU),
        (SlotFacts(Role.ACTIVE, CPU), NOTHING, False, ShortageAction.REFUSE),
        (SlotFacts(Role.TRIAL, CARD), SlotFacts(Role.PREVIOUS, CARD), False, ShortageAction.USE_OTHER_SLOT),
        (SlotFacts(Role.TRIAL, CPU), SlotFacts(Role.PREVIOUS, CPU), False, ShortageAction.USE_OTHER_SLOT),
        (SlotFacts(Role.PREVIOUS, CARD), SlotFacts(Role.TRIAL, CARD), False, ShortageAction.USE_OTHER_SLOT),
        (
            SlotFacts(Role.PREVIOUS, CARD),
            SlotFacts(Role.TRIAL, CARD),
            True,
            ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK,
        ),
        (
            SlotFacts(Role.TRIAL, CARD),
            SlotFacts(Role.PREVIOUS, CARD),
            True,
            ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK,
        ),
        (
            SlotFacts(Role.PREVIOUS, CPU),
            SlotFacts(Role.TRIAL, CARD),
            True,
            ShortageAction.REFUSE,
        ),  # there is nowhere further
        (SlotFacts(Role.TRIAL, CARD), NOTHING, False, ShortageAction.REFUSE),  # a first install: the updater judges
        (
            SlotFacts(Role.PREVIOUS, CARD),
            SlotFacts(Role.ACTIVE, CARD),
            False,
            ShortageAction.USE_OTHER_SLOT,
        ),  # left over from a trial
        (
            SlotFacts(Role.CANDIDATE, CARD),
            SlotFacts(Role.ACTIVE, CPU),
            False,
            ShortageAction.USE_OTHER_SLOT,
        ),  # it was rolled back
        (SlotFacts(Role.CANDIDATE, CARD), SlotFacts(Role.ACTIVE, CPU), True, ShortageAction.REFUSE),
    ],
)
def test_action_after_a_single_item(
    slot: SlotFacts,
    other: SlotFacts,
    other_failed: bool,  # noqa: FBT001  by parametrize
    action: ShortageAction,
) -> None:
    """By the roles and devices of both slots."""
    assert decide_after_item(slot, other, ALLOW, is_probe=False, other_failed=other_failed) is action


@pytest.mark.parametrize(
    ("slot", "other", "action"),
    [
        (A_CARD, NOTHING, ShortageAction.FALL_BACK_TO_CPU),
        (A_CARD, SlotFacts(Role.CANDIDATE, CARD), ShortageAction.FALL_BACK_TO_CPU),
        (A_CARD, SlotFacts(Role.PREVIOUS, CARD), ShortageAction.FALL_BACK_TO_CPU),
        (SlotFacts(Role.PREVIOUS, CARD), SlotFacts(Role.TRIAL, CARD), ShortageAction.FALL_BACK_TO_CPU),
        (SlotFacts(Role.TRIAL, CARD), SlotFacts(Role.PREVIOUS, CARD), ShortageAction.ROLL_BACK_TRIAL),
        (SlotFacts(Role.TRIAL, CPU), SlotFacts(Role.PREVIOUS, CARD), ShortageAction.ROLL_BACK_TRIAL),
        (SlotFacts(Role.TRIAL, CARD), NOTHING, ShortageAction.REFUSE),
        (SlotFacts(Role.CANDIDATE, CARD), A_CARD, ShortageAction.ABANDON_LOAD),
        (SlotFacts(Role.FALLBACK, CPU), A_CARD, ShortageAction.ABANDON_LOAD),
        (SlotFacts(Role.ACTIVE, CPU), NOTHING, ShortageAction.REFUSE),
    ],
)
def test_action_after_a_load(slot: SlotFacts, other: SlotFacts, action: ShortageAction) -> None:
    """By the roles and devices of both slots."""
    assert decide_after_load(slot, other, ALLOW) is action


def test_no_fallback_from_the_cpu_or_where_it_is_forbidden() -> None:
    """For all combinations of roles."""
    for here, there, probe, failed in product(Role, Role, (False, True), (False, True)):
        for rules, device in ((FORBID, CARD), (ALLOW, CPU)):
            slots = SlotFacts(here, device), SlotFacts(there, device)
            action = decide_after_item(*slots, rules, is_probe=probe, other_failed=failed)
            assert action in (ShortageAction.USE_OTHER_SLOT, ShortageAction.REFUSE)
            assert not (probe and action is ShortageAction.USE_OTHER_SLOT), "a probe means one slot"
            assert decide_after_load(*slots, rules) is not ShortageAction.FALL_BACK_TO_CPU


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ("auto", (True, True, True)),
        ("cuda", (True, True, False)),
        ("cuda:1", (False, True, False)),
        ("cpu", (False, False, True)),
    ],
)
def test_a_device_policy_allows_devices(policy: str, named: tuple[bool, ...]) -> None:
    """The devices that a setting includes."""
    assert named == tuple(
        DeviceRules(policy, allow_cpu_fallback=True).allows(device) for device in ("cuda:0", "cuda:1", "cpu")
    )


# With simulated runners.


async def on_card(state: Path, load_seconds: float = 0.0, **changes: object) -> World:
    """A world with r1 on the GPU."""
    world = World(state, device="auto", **changes)
    world.devices = [CARD, CPU]
    world.holds_loads = True
    await world.serving()
    world.clock.seconds += load_seconds
    world.holds_loads = False
    world.runner("a").load(world.runner("a").loaded)  # type: ignore[arg-type]
    await world.settle()
    assert (await world.ask().outcome).served_by.device == CARD
    return world


def moves(world: World) -> list[str]:
    """The emitted changes of CPU fallbacks."""
    return [event.change for event in world.events if isinstance(event, CpuFallbackChanged)]


def refused(error: pytest.ExceptionInfo[Overloaded]) -> tuple[str, float | None]:
    """Reason and time to come back."""
    return error.value.reason, error.value.retry_after_seconds


async def test_the_gpu_slot_stays_active_until_the_cpu_has_answered(tmp_path: Path) -> None:
    """The swap follows the CPU's first answer; held requests are answered by the CPU."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    short = world.ask(SHORT_ON_CARD)
    await world.settle()
    assert (world.pair.role_of("b"), world.active.name) == (Role.FALLBACK, "a")
    assert (await world.ask().outcome).served_by.device == CARD
    assert world.pair.is_ready()

    world.holds_loads = False
    world.runner("b").load(world.runner("b").loaded)  # type: ignore[arg-type]
    await world.settle()

    assert (await short.outcome).served_by.device == CPU
    assert (world.active.name, world.pair.is_ready()) == ("b", True)
    assert world.runners[0].has_ended
    assert world.runner("b").serving is True
    assert moves(world) == ["cpu_fallback_begun", "cpu_fallback_taken"]


async def test_a_request_with_a_short_deadline_is_refused_at_once(tmp_path: Path) -> None:
    """With the remaining load time as retry delay."""
    world = await on_card(tmp_path, load_seconds=5.0)
    world.holds_loads = True

    hurried, patient = world.ask(SHORT_ON_CARD, seconds=3.0), world.ask(SHORT_ON_CARD, seconds=30.0)
    await world.settle()

    with pytest.raises(Overloaded) as error:
        hurried.outcome.result()
    assert refused(error) == ("OUT_OF_MEMORY", 5.0)
    assert not patient.is_done
    await world.wait(31)
    with pytest.raises(DeadlineMissed):
        patient.outcome.result()


async def test_a_fallback_that_does_not_fit_leaves_the_gpu_slot_active(tmp_path: Path) -> None:
    """Held requests are refused; after a pause the fallback is tried again."""
    world = await on_card(tmp_path)
    world.refused[next((tmp_path / "bundles").iterdir()).name] = "DOES_NOT_FIT"

    short = world.ask(SHORT_ON_CARD)
    await world.settle()
    with pytest.raises(Overloaded) as error:
        short.outcome.result()
    assert refused(error) == ("OUT_OF_MEMORY", PAUSE_SECONDS)
    assert (world.active.name, world.pair.is_ready()) == ("a", True)
    assert (await world.ask().outcome).served_by.device == CARD

    again = world.ask(SHORT_ON_CARD)
    await world.settle()
    with pytest.raises(Overloaded):
        again.outcome.result()
    assert moves(world) == ["cpu_fallback_begun", "cpu_fallback_failed"]
    assert world.pair.cpu_fallback is None

    world.refused.clear()
    await world.wait(PAUSE_SECONDS + 1)
    assert (await world.ask(SHORT_ON_CARD).outcome).served_by.device == CPU


@pytest.mark.parametrize(("how", "told"), [("dies", "the process ended"), ("fails", "its self-test failed")])
async def test_a_cpu_slot_that_fails_before_its_first_answer_is_abandoned(tmp_path: Path, how: str, told: str) -> None:
    """The GPU slot stays active."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    short = world.ask(SHORT_ON_CARD)
    await world.settle()

    if how == "dies":
        world.runner("b").end()
    else:
        runner = world.runner("b")
        runner.always = "NOT_FINITE"
        world.holds_loads = False
        runner.load(runner.loaded)  # type: ignore[arg-type]
    await world.settle()

    assert short.is_done
    with pytest.raises(HotslotError):
        short.outcome.result()
    assert (world.active.name, world.pair.fallback) == ("a", None)
    last = [event for event in world.events if isinstance(event, CpuFallbackChanged)][-1]
    assert (last.change, last.detail.partition(":")[0]) == ("cpu_fallback_failed", told)
    assert (await world.ask().outcome).served_by.device == CARD


async def test_a_gpu_slot_that_dies_while_the_cpu_loads(tmp_path: Path) -> None:
    """If it does not fit again, the CPU slot becomes active at once."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    short = world.ask(SHORT_ON_CARD)
    await world.settle()
    world.holds_items, world.card = True, "OUT_OF_MEMORY"
    held = world.ask("held")
    await world.settle()
    world.holds_items = False
    world.runner("a").end()
    await world.settle()
    assert (world.pair.role_of("b"), world.pair.is_ready()) == (Role.FALLBACK, False)

    world.holds_loads = False
    world.runner("a").load(world.runner("a").loaded)  # type: ignore[arg-type]
    await world.settle()
    assert world.active.name == "b"
    world.runner("b").load(world.runner("b").loaded)  # type: ignore[arg-type]
    await world.settle()

    assert {(await pending.outcome).served_by.device for pending in (short, held)} == {CPU}
    assert world.pair["a"].state.name == "READY"


async def test_requests_that_wait_for_a_failed_gpu_slot_move_to_the_cpu(tmp_path: Path) -> None:
    """The GPU slot's process ends twice while the CPU loads; the CPU slot answers what waits when it is active."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    world.ask(SHORT_ON_CARD)
    await world.settle()
    for _ in range(2):
        world.runner("a").end()
        await world.settle()
    assert world.pair["a"].state.name == "FAILED"
    waiting = world.ask("waits for the card")

    world.holds_loads = False
    world.runner("b").load(world.runner("b").loaded)  # type: ignore[arg-type]
    await world.settle()

    assert waiting.is_done
    assert waiting.outcome.result().served_by.device == CPU


async def test_a_previous_slot_without_memory_hands_over_to_the_trial(tmp_path: Path) -> None:
    """A request whose deadline allowed one slot only; the trial goes on."""
    world = await on_card(tmp_path)
    await world.trial()
    answer = await world.ask(f"{SHORT}@r1", seconds=0.15).outcome  # no room for both: straight to r1

    assert answer.served_by.revision == "r2"
    assert world.pair.trial is not None
    assert world.manager.stats.get(StatsKey(world.bundle("r1").bundle_digest, CARD)).failed == {"OUT_OF_MEMORY": 1}


async def test_a_trial_that_runs_out_after_its_previous_slot_yields(tmp_path: Path) -> None:
    """Neither slot has memory: the trial is not counted as failed, and r1 answers from the CPU."""
    world = await on_card(tmp_path)
    await world.trial()

    answer = await world.ask(SHORT_ON_CARD, seconds=0.15).outcome

    assert (answer.served_by.revision, answer.served_by.device) == ("r1", CPU)
    assert world.pair.last_trial is not None
    assert (world.pair.last_trial.outcome, world.pair.last_trial.reason) == ("YIELDED", "OUT_OF_MEMORY")
    assert "trial_yielded" in world.changes()
    assert not world.manager.stats.get(StatsKey(world.bundle("r2").bundle_digest, CARD)).failed


async def test_the_slot_of_a_cpu_fallback_is_in_use(tmp_path: Path) -> None:
    """It can be neither retired, activated nor loaded into."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    world.ask(SHORT_ON_CARD)
    await world.settle()
    load = world.pair["b"].load
    assert load is not None

    for act, reason in (
        (lambda: world.commands.retire(load.load_id, 0), "SLOT_IN_USE"),
        (lambda: world.commands.activate(load.load_id, 60.0, "t", 0), "NOT_LOADED"),
        (lambda: world.commands.load(world.bundle("r2").bundle_digest, "", "t", 0), "NO_FREE_SLOT"),
    ):
        with pytest.raises(Conflict) as error:
            act()
        assert error.value.reason == reason


async def test_the_fallback_waits_for_a_retiring_slot(tmp_path: Path) -> None:
    """A candidate that is already retiring is not marked as failed; its slot is used when it is empty."""
    world = await on_card(tmp_path)
    load = await world.candidate()
    lease = world.manager.machine.slots["b"].lease()
    world.commands.retire(load.load_id, 0)
    short = world.ask(SHORT_ON_CARD)
    await world.settle()
    assert not short.is_done
    assert load.failure is None

    lease.end()
    await world.settle()
    assert (await short.outcome).served_by.device == CPU


async def test_a_self_test_without_memory_falls_back_without_traffic(tmp_path: Path) -> None:
    """Health would otherwise be wrong until the first request."""
    world = await on_card(tmp_path)
    world.runner("a").always = "OUT_OF_MEMORY"
    await world.wait(11)

    assert (world.active.name, world.pair.is_ready()) == ("b", True)
    assert (await world.ask().outcome).served_by.device == CPU


async def test_a_candidate_yields_while_it_loads(tmp_path: Path) -> None:
    """LoadSlot reports that the load can be repeated."""
    world = await on_card(tmp_path)
    world.holds_loads = True
    load = await world.candidate()
    runner = world.runner("b")
    world.ask(SHORT_ON_CARD)
    await world.settle()

    assert (runner.has_ended, runner.is_retiring) == (True, False)  # callers wait for a process on the CPU
    assert isinstance(load.failure, Interrupted)
    assert load.failure.reason == "LOAD_YIELDED"


# What a new server remembers.


def remember(state: Path, **changes: str) -> Path:
    """Write the file of an earlier server."""
    row = {"model": "shapes", "device": CARD, "fallback_device": CPU, "bundle_digest": "sha256:old"}
    row |= {"since": "2030-01-01T00:00:00+00:00", "reason": "OUT_OF_MEMORY", **changes}
    path = state / FILE_NAME
    path.write_text(json.dumps({"schema_version": 1, "models": [row]}))
    return path


@pytest.mark.fault("B11")
async def test_a_restarted_server_keeps_the_fallback_for_any_bundle(tmp_path: Path) -> None:
    """Failback is the updater's decision."""
    remember(tmp_path)
    world = World(tmp_path, device="auto")
    world.devices, world.card = [CARD, CPU], "OUT_OF_MEMORY"
    await world.serving()

    assert (await world.ask().outcome).served_by.device == CPU
    assert moves(world) == ["cpu_fallback_kept"]
    await world.candidate()
    candidate = world.pair["b"].load
    assert candidate is not None
    assert candidate.device == CPU


@pytest.mark.parametrize(
    ("policy", "allowed", "device"), [("cpu", True, CPU), ("cuda:1", True, "cuda:1"), ("auto", False, CARD)]
)
async def test_a_fallback_that_the_settings_no_longer_allow_is_removed(
    tmp_path: Path,
    policy: str,
    allowed: bool,  # noqa: FBT001
    device: str,
) -> None:
    """Another device is configured, or the CPU fallback is forbidden."""
    path = remember(tmp_path)
    world = World(tmp_path, device=policy, allow_cpu_fallback=allowed)
    world.devices = [device]
    await world.serving()

    assert (await world.ask().outcome).served_by.device == device
    assert moves(world) == ["cpu_fallback_ended"]
    assert not path.exists()


async def test_a_fallback_from_a_missing_device_is_removed(tmp_path: Path) -> None:
    """The GPU is no longer in the machine."""
    path = remember(tmp_path)
    world = await World(tmp_path, device="auto").serving()

    assert (moves(world), path.exists()) == (["cpu_fallback_kept", "cpu_fallback_ended"], False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"schema_version": 2, "models": []}',
        b'{"schema_version": 1, "models": [{"model": "shapes"}]}',
        b'{"schema_version": 1, "models": 7}',
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
async def test_a_file_that_cannot_be_read_is_ignored(tmp_path: Path, content: bytes) -> None:
    """With a warning; the configured device is used, and the file is rewritten when needed."""
    (tmp_path / FILE_NAME).write_bytes(content)
    world = await on_card(tmp_path)
    assert [line.partition(":")[0] for line in world.complaints] == ["fallbacks.json is ignored"]

    assert (await world.ask(SHORT_ON_CARD).outcome).served_by.device == CPU
    assert CpuFallbackFile(tmp_path / FILE_NAME, world.complaints.append).get("shapes") is not None


@pytest.mark.parametrize("field", ["device", "since", "reason"])
async def test_a_row_of_wrong_types_is_ignored(tmp_path: Path, field: str) -> None:
    """Numbers for texts, a time without a zone."""
    wrong: Any = {"since": "2030-01-01T00:00:00"}.get(field, 7)
    remember(tmp_path, **{field: wrong})
    world = await on_card(tmp_path)
    assert [line.partition(":")[0] for line in world.complaints] == ["fallbacks.json is ignored"]


def test_rows_are_read_back_by_a_new_server(tmp_path: Path) -> None:
    """One row per model; the file is removed with its last row."""
    rows = [
        CpuFallbackRow(model, CARD, CPU, "sha256:1", datetime(2030, 1, 1, tzinfo=UTC), "OUT_OF_MEMORY")
        for model in "ab"
    ]
    complaints: list[str] = []
    file = CpuFallbackFile(tmp_path / FILE_NAME, complaints.append)
    for row in rows:
        file.put(row)

    again = CpuFallbackFile(tmp_path / FILE_NAME, complaints.append)
    assert rows == [again.get("a"), again.get("b")]
    again.remove("a")
    again.remove("a")
    assert (tmp_path / FILE_NAME).exists()
    again.remove("b")
    assert (list(tmp_path.iterdir()), complaints) == ([], [])


def test_a_fallback_is_kept_in_memory_if_the_disk_fails(tmp_path: Path) -> None:
    """With a warning that it is not saved."""
    complaints: list[str] = []
    file = CpuFallbackFile(tmp_path / "gone" / FILE_NAME, complaints.append)
    file.put(CpuFallbackRow("a", CARD, CPU, "sha256:1", datetime(2030, 1, 1, tzinfo=UTC), "OUT_OF_MEMORY"))

    assert file.get("a") is not None
    assert complaints == ["fallbacks.json cannot be written: No such file or directory"]
