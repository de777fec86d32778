"""Models are added, removed and replaced while the server serves: no accepted request is lost."""

import errno
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from common.bundle import MANIFEST_NAME, bundle_folder
from common.durable import read_bounded
from common.errors import NotFound
from common.logs import Logger
from dev.harness.pointer import commit_bundle
from inference.server.api.status import judge_model
from inference.server.health import Overall
from inference.server.model import messages as m
from inference.server.model.changes import BOOT_THREAD, MAX_BOOT_SECONDS, ModelChanges
from inference.server.model.commands import BOOT_PAUSE_SECONDS, SlotCommands
from inference.server.model.models import Models
from inference.server.model.transitions import STANDBY_DELAY_SECONDS
from inference.server.readiness import Readiness
from inference.server.scheduling.admission import Capacity
from tests.common.clock import KeptLog
from tests.server.simulator import World

STEP_SECONDS = 0.05
PATIENCE_SECONDS = 30.0  # of the wall clock, for another thread


class Server:
    """The models of a server on simulated runners, all on one clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = World(folder)
        self.worlds = [self.first]
        self.models = Models([self.first.manager])
        self.log = KeptLog()
        self.forgotten: list[tuple[str, bool]] = []
        forget = lambda name, is_served: self.forgotten.append((name, is_served))  # noqa: E731
        self.changes = ModelChanges(self.models, forget, cast("Logger", self.log))

    async def serving(self) -> "Server":
        """One model answers."""
        await self.first.serving()
        return self

    def make(self, name: str, revision: str = "r1", **options: object) -> World:
        """A model that is not served yet, with a committed revision."""
        world = World(self.folder, model=name, clock=self.first.clock, **options)
        world.clock = self.first.clock
        if revision:
            commit_bundle(self.folder, world.bundle(revision), name)
        self.worlds.append(world)
        return world

    def apply(self, *order: str, added: tuple[World, ...] = (), changed: tuple[World, ...] = ()) -> None:
        """Serve these models."""
        new, other = ({world.manager.options.model: world.manager for world in worlds} for worlds in (added, changed))
        self.changes.apply(order, new, other)

    async def wait(self, seconds: float = 0.5) -> None:
        """Let time pass, ticking."""
        for _ in range(round(seconds / STEP_SECONDS)):
            self.first.clock.seconds += STEP_SECONDS
            for world in self.worlds:
                for runner in world.runners:
                    if not runner.has_ended and runner.loaded is not None:
                        runner.beat()
            self.changes.tick()
            for thread in threading.enumerate():
                if thread.name == BOOT_THREAD:
                    thread.join(PATIENCE_SECONDS)
            await self.first.settle()

    def names(self) -> list[str]:
        """The models that are served."""
        return [manager.options.model for manager in self.models.all()]


def break_bundle(monkeypatch: pytest.MonkeyPatch, world: World, revision: str, *, times: float = math.inf) -> None:
    """A fault of the disk in one bundle's folder, for the first few times that it is looked for."""
    folder = bundle_folder(world.state, world.bundle(revision).bundle_digest)
    looks = 0

    def fail(path: Path, limit: int) -> bytes:
        nonlocal looks
        looks += path.parent == folder
        if path.parent == folder and looks <= times:
            raise OSError(errno.EIO, "Input/output error", path)
        return read_bounded(path, limit)

    monkeypatch.setattr("common.bundle.read_bounded", fail)


async def read_again(server: Server, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path, int], bytes]) -> World:
    """A model whose bundle could not be read at its start, and is read again now, by a thread of its own."""
    added = server.make("more")
    break_bundle(monkeypatch, added, "r1", times=1)
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    monkeypatch.setattr("common.bundle.read_bounded", read)
    server.first.clock.seconds += BOOT_PAUSE_SECONDS
    server.changes.tick()
    return added


@pytest.fixture
async def server(tmp_path: Path) -> Server:
    """A server whose one model answers."""
    return await Server(tmp_path).serving()


async def test_an_added_model_boots_what_is_committed(server: Server) -> None:
    """It answers, and the other one goes on."""
    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()

    assert (await added.ask().outcome).served_by.model == "more"
    assert (await server.first.ask().outcome).served_by.model == "shapes"
    assert server.names() == ["shapes", "more"]


async def test_an_added_model_without_a_revision_waits_for_the_first_install(server: Server) -> None:
    """It is served, and loads what the updater installs."""
    added = server.make("more", revision="")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    load = await added.candidate("r1")
    added.commands.activate(load.load_id, 60.0, "t1", 0)
    await server.wait()

    assert (await added.ask().outcome).served_by.revision == "r1"
    assert [fields["model"] for name, fields in server.log.lines if name == "boot_without_model"] == ["more"]


@pytest.mark.fault("D9")
async def test_a_model_whose_bundle_cannot_be_read_costs_no_other_its_boot(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits as one without a revision does; the models after it in the list are booted and replaced."""
    unreadable, added, replacement = server.make("unreadable", "r2"), server.make("more"), server.make("shapes")
    break_bundle(monkeypatch, unreadable, "r2")
    server.apply("shapes", "unreadable", "more", added=(unreadable, added), changed=(replacement,))
    await server.wait()

    assert (await added.ask().outcome).served_by.model == "more"
    assert server.models.get("shapes") is replacement.manager
    assert [fields for name, fields in server.log.lines if name == "boot_without_model"] == [
        {"model": "unreadable", "detail": "its bundle cannot be read: Input/output error"}
    ]


def fail_to_open(monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """No free descriptor, for the first few times that a pointer or a manifest is opened."""
    looks = 0

    def fail(path: Path, limit: int) -> bytes:
        nonlocal looks
        looks += 1
        if looks <= times:
            raise OSError(errno.EMFILE, "Too many open files", path)
        return read_bounded(path, limit)

    monkeypatch.setattr("common.bundle.read_bounded", fail)


@pytest.mark.fault("D9")
@pytest.mark.parametrize("what", ["folder", "manifest"])
async def test_a_model_whose_bundle_could_not_be_read_is_loaded_when_that_has_passed(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Not before a pause, with one standby process, and with one line in the log for two failures."""
    added = server.make("more")
    if what == "folder":
        break_bundle(monkeypatch, added, "r1", times=2)
    else:
        fail_to_open(monkeypatch, times=2)
    server.apply("shapes", "more", added=(added,))
    await server.wait(2 * BOOT_PAUSE_SECONDS - 1.0)
    assert added.pair.active_slot is None

    await server.wait(2.0 + STANDBY_DELAY_SECONDS)

    assert (await added.ask().outcome).served_by.revision == "r1"
    assert [runner.has_ended for runner in added.runners] == [False, False]
    failures = [name for name in server.log.events if name in ("boot_without_model", "background_task_failed")]
    assert failures == ["boot_without_model"]


async def test_a_disk_that_holds_a_read_holds_no_other_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second read begins only when the first has ended."""
    added, readers = server.make("more"), list[threading.Thread]()
    is_held, held = threading.Event(), threading.Event()

    def hold(path: Path, limit: int) -> bytes:
        readers.append(threading.current_thread())
        if threading.current_thread() is not threading.main_thread():
            is_held.set()
            held.wait(PATIENCE_SECONDS)
        if len(readers) <= 2:
            raise OSError(errno.EIO, "Input/output error", path)
        return read_bounded(path, limit)

    monkeypatch.setattr("common.bundle.read_bounded", hold)
    server.apply("shapes", "more", added=(added,))
    for _ in range(3):
        server.first.clock.seconds += BOOT_PAUSE_SECONDS
        server.changes.tick()
    is_held.wait(PATIENCE_SECONDS)
    await server.first.settle()
    assert [thread is threading.main_thread() for thread in readers] == [True, False]
    assert added.pair.active_slot is None

    held.set()
    await server.wait(2 * BOOT_PAUSE_SECONDS)

    assert (await added.ask().outcome).served_by.revision == "r1"
    assert threading.main_thread() not in readers[1:]


async def test_a_load_while_the_disk_is_read_again_is_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the read has found comes too late: a command has decided, also when nothing is left of its load."""
    held = threading.Event()

    def hold(path: Path, limit: int) -> bytes:
        if threading.current_thread().name == BOOT_THREAD:
            held.wait(PATIENCE_SECONDS)
        return read_bounded(path, limit)

    added = await read_again(server, monkeypatch, hold)
    load = await added.candidate("r2")
    added.commands.retire(load.load_id, 0)
    held.set()
    await server.wait(3 * BOOT_PAUSE_SECONDS)

    loaded = [added.revision_of(runner.loaded) for runner in added.runners if runner.loaded is not None]
    assert (loaded, added.pair.active_slot) == (["r2"], None)


async def test_a_stopped_server_does_not_wait_for_a_disk_that_holds_a_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends too: the thread that reads keeps nothing."""
    held = threading.Event()

    def hold(_path: Path, _limit: int) -> bytes:
        held.wait(PATIENCE_SECONDS)
        raise OSError(errno.EIO, "Input/output error")

    added = await read_again(server, monkeypatch, hold)
    readers = [thread for thread in threading.enumerate() if thread.name == BOOT_THREAD]
    await server.changes.stop(1.0)
    assert [(thread.is_alive(), thread.daemon) for thread in readers] == [(True, True)]

    held.set()
    await server.wait()
    assert added.pair.active_slot is None


async def test_a_fault_that_does_not_pass_by_itself_is_not_tried_again(server: Server) -> None:
    """A bundle that is damaged stays so; the log says it once."""
    added = server.make("more")
    manifest = bundle_folder(server.folder, added.bundle("r1").bundle_digest) / MANIFEST_NAME
    manifest.write_text("{")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    added.bundle("r1")
    await server.wait(2 * BOOT_PAUSE_SECONDS)

    assert added.pair.active_slot is None
    assert server.log.events.count("boot_without_model") == 1


async def test_the_next_reason_of_a_model_without_its_bundle_is_logged_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk can be read again, and the bundle is damaged."""
    added = server.make("more")
    break_bundle(monkeypatch, added, "r1", times=1)
    server.apply("shapes", "more", added=(added,))
    (bundle_folder(server.folder, added.bundle("r1").bundle_digest) / MANIFEST_NAME).write_text("[]")
    await server.wait(3 * BOOT_PAUSE_SECONDS)

    details = [fields["detail"] for name, fields in server.log.lines if name == "boot_without_model"]
    assert details == ["its bundle cannot be read: Input/output error", "bundle.json is not a JSON object"]


async def test_the_health_says_why_no_model_is_loaded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that nothing is committed, when something is; what a command has loaded since ends the reason."""
    unreadable, empty = server.make("unreadable"), server.make("empty", revision="")
    break_bundle(monkeypatch, unreadable, "r1", times=1)
    server.apply("shapes", "unreadable", "empty", added=(unreadable, empty))
    await server.wait()
    before = [judge_model(world.manager, is_ready=False) for world in (unreadable, empty)]
    for world in (unreadable, empty):
        world.commands.retire((await world.candidate("r2")).load_id, 0)
    after = [judge_model(world.manager, is_ready=False) for world in (unreadable, empty)]

    nothing = "no model is loaded; nothing is committed yet"
    assert before == [
        (2, "no model is loaded; its bundle cannot be read: Input/output error"),
        (2, f"{nothing}; import a model or let the updater install one"),
    ]
    assert after == [(2, "no model is loaded"), (2, nothing)]


@pytest.mark.parametrize("is_retired", [False, True])
async def test_what_a_command_has_loaded_is_not_loaded_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, is_retired: bool
) -> None:
    """Commands decide from the first load on, also when nothing is left of it."""
    added = server.make("more")
    break_bundle(monkeypatch, added, "r1", times=1)
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    load = await added.candidate("r2")
    if is_retired:
        added.commands.retire(load.load_id, 0)
    await server.wait(3 * BOOT_PAUSE_SECONDS)

    loaded = [added.revision_of(runner.loaded) for runner in added.runners if runner.loaded is not None]
    assert loaded == ["r2"]
    assert added.pair.active_slot is None


async def test_a_removed_model_is_not_loaded_when_its_bundle_can_be_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its process ends only after the pause."""
    added = server.make("more")
    break_bundle(monkeypatch, added, "r1", times=1)
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    (standby,) = added.runners
    monkeypatch.setattr(standby, "kill", lambda _: None)
    server.apply("shapes")
    await server.wait(3 * BOOT_PAUSE_SECONDS)
    assert (added.runners, server.models.leaving) == ([standby], (added.manager,))

    standby.end()
    await server.wait()

    assert (added.runners, standby.loaded, server.models.leaving) == ([standby], None, ())


async def test_a_model_without_its_bundle_takes_over_changed_settings(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replacement has nothing to wait for; it is what is loaded when the fault has passed."""
    added, replacement = server.make("more"), server.make("more")
    break_bundle(monkeypatch, added, "r1", times=2)
    server.apply("shapes", "more", added=(added,))
    server.apply("shapes", "more", changed=(replacement,))
    await server.wait(2 * BOOT_PAUSE_SECONDS)

    assert server.models.get("more") is replacement.manager
    assert (await replacement.ask().outcome).served_by.revision == "r1"
    assert [runner.loaded for runner in added.runners] == [None]


async def test_a_removed_model_answers_what_it_has_accepted(server: Server) -> None:
    """It is not found any more; its runners end when the last answer is out."""
    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    added.holds_items = True
    accepted = added.ask()
    server.apply("shapes")
    await server.wait()
    with pytest.raises(NotFound):
        server.models.get("more")
    assert not accepted.is_done

    added.holds_items = False
    added.runner(added.active.name).compute()
    await server.wait(2.0)

    assert (await accepted.outcome).served_by.model == "more"
    assert [runner.has_ended for runner in added.runners] == [True, True]
    assert (server.forgotten, server.models.leaving) == ([("more", False)], ())


async def test_a_removed_model_is_leaving_until_its_processes_have_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a driver holds is reported seconds later, with the labels of its slot: they would stay for ever."""

    async def stop_waits_no_longer(_commands: SlotCommands, _seconds: float) -> None: ...

    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    monkeypatch.setattr(SlotCommands, "stop", stop_waits_no_longer)
    server.apply("shapes")
    await server.wait()
    before = list(server.forgotten), len(server.models.leaving)
    added.manager.machine.apply(m.Stop())
    for runner in added.runners:
        runner.end()
    await server.wait()

    assert before == ([], 1)
    assert (server.forgotten, server.models.leaving) == ([("more", False)], ())


async def test_a_request_of_a_removed_model_expires_at_its_deadline(server: Server) -> None:
    """A runner that never answers does not keep the model for longer than its last deadline."""
    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    added.holds_items = True
    accepted = added.ask(seconds=1.0)
    server.apply("shapes")
    await server.wait(9.0)

    assert type(accepted.outcome.exception()).__name__ == "DeadlineMissed"
    assert server.models.leaving == ()


async def test_a_changed_model_answers_while_its_replacement_loads(server: Server) -> None:
    """No moment without a model that answers; then the replacement has the calls, and the old runners end."""
    replacement = server.make("shapes")
    replacement.holds_loads = True
    server.apply("shapes", changed=(replacement,))
    await server.wait()
    assert list(server.changes.loading) == ["shapes"]
    assert server.models.get("shapes") is server.first.manager
    accepted = server.first.ask()

    replacement.holds_loads = False
    runner = replacement.runner(replacement.active.name)
    assert runner.loaded is not None
    runner.load(runner.loaded)
    await server.wait(2.0)

    assert (await accepted.outcome).served_by.revision == "r1"
    assert server.models.get("shapes") is replacement.manager
    assert list(server.changes.loading) == []
    assert [runner.has_ended for runner in server.first.runners] == [True, True]
    assert server.forgotten == [("shapes", True)]


async def test_a_replacement_that_cannot_load_changes_nothing(server: Server) -> None:
    """The model goes on with its settings, and the status says so."""
    replacement = server.make("shapes")
    replacement.refused[replacement.bundle("r1").bundle_digest.replace(":", "-")] = "BROKEN"
    server.apply("shapes", changed=(replacement,))
    await server.wait(5.0)

    assert server.models.get("shapes") is server.first.manager
    assert (await server.first.ask().outcome).served_by.revision == "r1"
    assert list(server.changes.failures) == ["shapes"]
    assert all(runner.has_ended for runner in replacement.runners)


@pytest.mark.fault("D9")
async def test_a_replacement_whose_bundle_cannot_be_read_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute: the model goes on with its settings, and the status says why without a path."""
    replacement = server.make("shapes")
    break_bundle(monkeypatch, replacement, "r1")
    server.apply("shapes", changed=(replacement,))
    await server.wait(MAX_BOOT_SECONDS - 1.0)
    assert list(server.changes.loading) == ["shapes"]
    await server.wait(2.0)

    assert server.changes.failures == {"shapes": "its bundle cannot be read: Input/output error"}
    assert list(server.changes.loading) == []
    assert (await server.first.ask().outcome).served_by.revision == "r1"
    assert server.models.get("shapes") is server.first.manager
    assert [runner.has_ended for runner in replacement.runners] == [True]


async def test_a_replacement_whose_bundle_is_damaged_is_given_up_at_once(server: Server) -> None:
    """That does not pass by itself."""
    replacement = server.make("shapes")
    (bundle_folder(server.folder, replacement.bundle("r1").bundle_digest) / MANIFEST_NAME).write_text("{")
    server.apply("shapes", changed=(replacement,))
    await server.wait()

    assert (list(server.changes.failures), list(server.changes.loading)) == (["shapes"], [])


@pytest.mark.fault("D9")
@pytest.mark.parametrize("what", ["folder", "manifest"])
async def test_a_replacement_whose_bundle_could_not_be_read_takes_over_when_that_has_passed(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Until then the model goes on with its settings; the replacement loads what that has, whatever is committed."""
    replacement = server.make("shapes")
    commit_bundle(server.folder, replacement.bundle("r2"), "shapes")
    if what == "folder":
        break_bundle(monkeypatch, replacement, "r1", times=2)
    else:
        fail_to_open(monkeypatch, times=2)
    server.apply("shapes", changed=(replacement,))
    await server.wait(2 * BOOT_PAUSE_SECONDS - 1.0)
    assert (list(server.changes.loading), server.changes.failures) == (["shapes"], {})
    assert (await server.first.ask().outcome).served_by.revision == "r1"

    await server.wait(2.0)

    assert server.models.get("shapes") is replacement.manager
    assert (await replacement.ask().outcome).served_by.revision == "r1"
    assert (list(server.changes.loading), server.changes.failures) == ([], {})


async def test_a_replacement_that_tries_again_does_not_take_over_from_a_model_that_is_loaded_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to answer with yet, and is not made anew either."""
    server.first.holds_loads = True
    server.first.runner(server.first.active.name).end()
    replacement = server.make("shapes")
    break_bundle(monkeypatch, replacement, "r1", times=1)
    server.apply("shapes", changed=(replacement,))
    await server.wait(BOOT_PAUSE_SECONDS - 1.0)
    assert server.models.get("shapes") is server.first.manager
    assert [runner.has_ended for runner in replacement.runners] == [False]

    await server.wait(2.0)

    assert server.models.get("shapes") is replacement.manager
    assert (await replacement.ask().outcome).served_by.revision == "r1"


async def test_a_replacement_without_a_bundle_does_not_take_over_from_a_model_that_is_loaded_again(
    server: Server,
) -> None:
    """It has nothing to answer with, and would be made anew at each tick."""
    server.first.holds_loads = True
    server.first.runner(server.first.active.name).end()
    replacement = server.make("shapes")
    (bundle_folder(server.folder, replacement.bundle("r1").bundle_digest) / MANIFEST_NAME).write_text("{")
    server.apply("shapes", changed=(replacement,))
    await server.wait()

    assert list(server.changes.failures) == ["shapes"]
    assert server.models.get("shapes") is server.first.manager
    assert [runner.has_ended for runner in replacement.runners] == [True]


async def test_a_replacement_without_a_bundle_does_not_take_over_in_a_gap(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that was unloaded for another one is loaded again when the gap's lease ends: it alone knows."""
    replacement = server.make("shapes")
    break_bundle(monkeypatch, replacement, "r1")
    server.apply("shapes", changed=(replacement,))
    await server.wait()
    load = server.first.active.load
    assert load is not None
    server.first.commands.retire(load.load_id, 0, gap_lease_seconds=20.0)
    await server.wait(2.0)

    assert server.first.pair.gap is not None
    assert server.models.get("shapes") is server.first.manager


async def test_an_attempt_to_read_a_bundle_that_fails_unforeseen_is_repeated_after_a_pause(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each tick, twenty times a second."""
    added, attempts = server.make("more"), list[SlotCommands]()

    def fail(commands: SlotCommands, _digest: str) -> None:
        attempts.append(commands)
        raise MemoryError

    break_bundle(monkeypatch, added, "r1")
    server.apply("shapes", "more", added=(added,))
    monkeypatch.setattr(SlotCommands, "read_for_boot", fail)
    await server.wait(2 * BOOT_PAUSE_SECONDS + 1.0)

    assert len(attempts) == 2


async def test_a_replacement_waits_for_the_verdict_of_a_trial(server: Server) -> None:
    """What the trial ends with is what the replacement loads."""
    load = await server.first.trial("r2")
    replacement = server.make("shapes", revision="")
    server.apply("shapes", changed=(replacement,))
    await server.wait(2.0)
    assert server.models.get("shapes") is server.first.manager

    commit_bundle(server.folder, server.first.bundle("r2"), "shapes")
    server.first.commands.commit(load.load_id, "t1", 0)
    await server.wait(3.0)

    served = server.models.get("shapes")
    assert served is not server.first.manager
    assert served.pair.active_slot is not None
    assert served.pair.active_slot.load is not None
    assert served.pair.active_slot.load.bundle.revision == "r2"


async def test_a_second_change_drops_the_replacement_of_the_first(server: Server) -> None:
    """The last settings count."""
    first, second = server.make("shapes"), server.make("shapes")
    first.holds_loads = True
    server.apply("shapes", changed=(first,))
    await server.wait()
    server.apply("shapes", changed=(second,))
    await server.wait(3.0)

    assert server.models.get("shapes") is second.manager
    assert all(runner.has_ended for runner in first.runners)


async def test_health_has_the_names_of_the_models_that_are_served(server: Server) -> None:
    """An added model's name appears; a removed one's is unknown, and the whole server does not wait for it."""
    readiness = Readiness(server.models, server.first.drain, Overall.ALL, cast("Logger", server.log))
    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()
    readiness.update()
    before = [readiness.health.is_serving(name) for name in ("", "shapes", "more")]
    server.apply("shapes")
    readiness.update()

    assert before == [True, True, True]
    assert [readiness.health.is_serving(name) for name in ("", "shapes", "more")] == [True, True, None]


async def test_the_capacity_changes_at_once(server: Server) -> None:
    """Also of models that are being loaded."""
    replacement = server.make("shapes")
    server.apply("shapes", changed=(replacement,))
    server.changes.set_capacity(Capacity(max_requests=3, max_bytes=500))

    found = [world.manager.requests.intake.admission.capacity for world in (server.first, replacement)]
    assert found == [Capacity(max_requests=3, max_bytes=500)] * 2


async def test_a_model_whose_check_fails_keeps_no_other_from_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of the others expire at their deadlines; the log has the failure once."""
    added = server.make("more")
    server.apply("shapes", "more", added=(added,))
    await server.wait()

    def fail() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(server.first.manager, "tick", fail)
    added.holds_items = True
    asked = added.ask(seconds=1.0)
    await server.wait(3.0)

    assert asked.is_done
    failed = [fields["task"] for name, fields in server.log.lines if name == "background_task_failed"]
    assert failed == ["model shapes"]
