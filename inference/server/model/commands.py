"""Commands on the slots of one model: boot, load, activate, commit, retire, stop."""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from common import errors
from common.bundle import Bundle, BundleBroken, Committed, bundle_folder, is_digest, read_bundle, read_committed
from inference.server.model import messages as m
from inference.server.model.manager import ModelManager
from inference.server.model.pair import CPU_DEVICE, UNRESOLVED_DEVICES, Load, Pair, ShadowPolicy, SlotState
from inference.server.model.slot import LoadProgress
from inference.server.model.transitions import default_device

BOOT_PAUSE_SECONDS = 5.0  # a lack of descriptors often passes within seconds, and a try reads two small files


@dataclass(frozen=True, slots=True)
class BootBundle:
    """What a model finds on disk to start with."""

    committed: Committed | None
    bundle: Bundle | None
    failure: str = ""  # why there is no bundle
    is_passing: bool = False  # the failure may pass by itself


class SlotCommands:
    """The commands of the control socket and of the server's lifecycle on one model.

    Loop thread only, but `read_for_boot`.
    """

    def __init__(self, manager: ModelManager) -> None:
        self.manager = manager
        self._options = manager.options
        self._machine = manager.machine

    @property
    def _pair(self) -> Pair:
        return self._machine.pair

    def boot(self, digest: str = "") -> str:
        """Start the processes and load a bundle: by default the committed one.

        Returns:
            Why no load has begun, for the log; empty if one has.
        """
        bundle = self._keep(self.read_for_boot(digest))
        load = None if bundle is None else self._new_load(bundle, "", "boot")
        self._machine.apply(m.Boot(load, self._options.cpu_fallback_file.get(self._options.model)))
        return self.manager.boot_failure

    def boot_again(self, found: BootBundle) -> str:
        """Load a bundle that the start could not read; its processes run already.

        Returns:
            Why no load has begun, for the log; empty if one has.
        """
        bundle = self._keep(found)
        if bundle is not None:
            self._machine.apply(m.BootAgain(self._new_load(bundle, "", "boot")))
        return self.manager.boot_failure

    def read_for_boot(self, digest: str = "") -> BootBundle:
        """Look for the bundle to start with, by default the committed one. From any thread: it only reads."""
        committed = self.manager.committed
        try:
            committed = self._read_committed()
            chosen = digest or ("" if committed is None else committed.bundle_digest)
            if chosen:
                return BootBundle(committed, self._open_bundle(chosen))
        except OSError as error:  # a fault of the disk is one model's alone
            return BootBundle(committed, None, f"its bundle cannot be read: {error.strerror}", is_passing=True)
        except (BundleBroken, errors.HotslotError) as error:
            return BootBundle(committed, None, str(error), is_passing=_is_of_system(error))
        return BootBundle(None, None, "nothing is committed yet; import a model or let the updater install one")

    def load(self, digest: str, device: str, transaction_id: str, expected_generation: int) -> LoadProgress:
        """Load a bundle into the free slot, or return the existing load of the same bundle and device.

        Raises:
            HotslotError: an error of LoadSlot; nothing has changed.
        """
        if not is_digest(digest):
            raise errors.InputRefused(
                "bundle_digest must be sha256: and 64 hexadecimal digits",
                reason="DIGEST_MALFORMED",
                field="bundle_digest",
            )
        device = self._choose_device(device)
        running = self._find_load(digest, device)
        if running is not None:
            return self._machine.progress_of(running.load_id)
        self._check_generation(expected_generation)
        self._check_draining()
        try:
            bundle = self._open_bundle(digest)
        except OSError as error:
            sentence = f"the bundle cannot be read now: {(error.strerror or type(error).__name__).lower()}"
            raise errors.Conflict(sentence, reason="BUNDLE_BROKEN") from error
        load = self._new_load(bundle, device, transaction_id)
        self._machine.apply(m.LoadBundle(load))
        self.manager.boot_again_at, self.manager.boot_failure = None, ""  # what is loaded is decided by commands now
        return self._machine.progress_of(load.load_id)

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        *,
        percent: float | None = None,
        shadow: ShadowPolicy | None = None,
    ) -> None:
        """Begin or extend a trial, or roll back to the previous slot.

        Args:
            load_id: of the slot that is to be active.
            trial_lease_seconds: how long the trial lives without another call.
            transaction_id: of the operation.
            expected_generation: that the caller has read; 0: any.
            percent: of the requests that the trial gets; None: all, or as before.
            shadow: the sample of requests that the previous slot answers too; None: none, or as before.

        Raises:
            HotslotError: an error of ActivateSlot; nothing has changed.
        """
        self._check_generation(expected_generation)
        self._check_draining()
        self._machine.apply(m.Activate(load_id, trial_lease_seconds, transaction_id, percent, shadow))

    def set_percent(self, load_id: str, percent: float, transaction_id: str, expected_generation: int) -> None:
        """Change which part of the requests the trial gets.

        Raises:
            HotslotError: an error of SetTraffic; nothing has changed.
        """
        self._check_generation(expected_generation)
        self._check_draining()
        self._machine.apply(m.SetPercent(load_id, percent, transaction_id))

    def set_shadow(self, load_id: str, policy: ShadowPolicy, transaction_id: str, expected_generation: int) -> None:
        """Copy requests for a candidate, or for the comparison of the trial.

        Raises:
            HotslotError: an error of SetTraffic; nothing has changed.
        """
        self._check_generation(expected_generation)
        self._check_draining()
        self._machine.apply(m.SetShadow(load_id, policy, transaction_id))

    def commit(self, load_id: str, transaction_id: str, expected_generation: int) -> None:
        """End the trial and keep its revision.

        Raises:
            HotslotError: an error of CommitSlot; nothing has changed.
        """
        self._check_generation(expected_generation)
        self._machine.apply(m.Commit(load_id, transaction_id))
        with contextlib.suppress(BundleBroken, OSError):
            self.manager.committed = self._read_committed() or self.manager.committed

    def retire(self, load_id: str, expected_generation: int, *, gap_lease_seconds: float | None = None) -> None:
        """Empty the slot that holds a load; does nothing if no slot holds it.

        Args:
            load_id: of the slot.
            expected_generation: that the caller has read; 0: any.
            gap_lease_seconds: the active slot may be emptied, too; if nothing answers when this time has passed
                without a command, its model is loaded again. None: not the active slot.

        Raises:
            HotslotError: an error of RetireSlot; nothing has changed.
        """
        self._check_generation(expected_generation)
        gap = None if gap_lease_seconds is None else m.GapTerms(gap_lease_seconds, _new_load_id())
        self._machine.apply(m.Retire(load_id, gap))

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """While a command of the updater is under way: the lease of a gap does not run."""
        self.manager.commands_under_way += 1
        self._machine.apply(m.RenewGap())
        try:
            yield
        finally:
            self.manager.commands_under_way -= 1
            self._machine.apply(m.RenewGap())

    async def stop(self, seconds: float) -> None:
        """Retire all processes; kill those that have not ended after `seconds`."""
        processes = [slot.process for slot in self._machine.slots.values() if slot.process is not None]
        waits = [asyncio.ensure_future(process.wait_ended()) for process in processes]
        self._machine.apply(m.Stop())
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            if late:
                self._machine.apply(m.Stop(at_once=True))
            await asyncio.wait(waits, timeout=2.0)

    def _read_committed(self) -> Committed | None:
        return read_committed(self._options.state_dir).get(self._options.model)

    def _choose_device(self, requested: str) -> str:
        """The device to load on: the requested one, else that of the active load, else the default."""
        active, row = self._pair.active_slot, self._pair.cpu_fallback
        load = None if active is None else active.load
        if not requested:
            return default_device(self._pair, self._options.rules) if load is None else load.device
        known = {device for slot in self._pair for device, _ in slot.devices}
        is_fallback = row is not None and requested == row.fallback_device
        if load is not None and requested == CPU_DEVICE and self._options.rules.device.may_move_to_cpu(load.device):
            return requested
        if requested not in known and not is_fallback and not (requested == "cpu" and not known):
            raise errors.InputRefused(
                f"no device {requested[:32]!r} here; there are {', '.join(sorted(known)) or 'none known yet'}",
                reason="DEVICE_UNKNOWN",
                field="device",
            )
        return requested

    def _find_load(self, digest: str, device: str) -> Load | None:
        for slot in self._pair:
            load = slot.load
            if load is None or load.bundle.bundle_digest != digest or slot.state is SlotState.RETIRING:
                continue
            if load.device == device or {load.device, device} & set(UNRESOLVED_DEVICES):
                return load
        return None

    def _keep(self, found: BootBundle) -> Bundle | None:
        """The bundle that was found; if there is none, the manager keeps the reason, and when to look again."""
        manager, now = self.manager, self._options.clock.monotonic()
        manager.committed, manager.boot_failure = found.committed, found.failure
        manager.boot_again_at = now + BOOT_PAUSE_SECONDS if found.is_passing else None
        if found.is_passing and manager.boot_failed_at is None:
            manager.boot_failed_at = now
        return found.bundle

    def _open_bundle(self, digest: str) -> Bundle:
        folder = bundle_folder(self._options.state_dir, digest)
        try:
            bundle = read_bundle(folder)
        except BundleBroken as error:
            if folder.is_dir():
                raise errors.Conflict(str(error), reason="BUNDLE_BROKEN") from error
            raise errors.NotFound(
                "no sealed bundle has this digest",
                reason="BUNDLE_UNKNOWN",
                field="bundle_digest",
                resource=("bundle", digest),
            ) from None
        if bundle.bundle_digest != digest:
            raise errors.Conflict("the bundle's manifest names another digest", reason="BUNDLE_BROKEN")
        if bundle.engine not in self._options.engines or bundle.task != self._options.task:
            raise errors.Conflict(
                f"the bundle is for engine {bundle.engine!r}, task {bundle.task!r}; this model's task is "
                f"{self._options.task.value!r}, engines here: {', '.join(sorted(self._options.engines))}",
                reason="BUNDLE_FOREIGN",
            )
        return bundle

    def _new_load(self, bundle: Bundle, device: str, transaction_id: str) -> Load:
        return Load(
            load_id=_new_load_id(),
            bundle=bundle,
            folder=bundle_folder(self._options.state_dir, bundle.bundle_digest).absolute(),
            device=device,
            transaction_id=transaction_id,
            begun_at=self._options.clock.monotonic(),
        )

    def _check_draining(self) -> None:
        if self._options.drain.is_draining:
            raise errors.Conflict("this server is draining", reason="DRAINING")

    def _check_generation(self, expected_generation: int) -> None:
        if expected_generation not in (0, self._pair.generation):
            raise errors.Conflict(
                f"the generation is {self._pair.generation}, not {expected_generation}", reason="GENERATION_CONFLICT"
            )


def _new_load_id() -> str:
    return uuid.uuid4().hex[:12]


def _is_of_system(error: BaseException | None) -> bool:
    """Whether a call of the system failed: no free descriptor, a fault of the disk. It may pass by itself."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None
