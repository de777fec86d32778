"""Builds the update loop of one model with its real ports."""

import random
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.clock import Clock
from common.sealing import Convert, ConvertLimits, run_convert
from common.settings import ModelSettings
from updater.commands import CommandQueue
from updater.control.client import ControlClient
from updater.control.prober import Prober
from updater.core.breaker import BreakerName, BreakerRules
from updater.core.ports import Hub
from updater.core.record import ModelRecord
from updater.core.rules import (
    ACTIVATION_BREAKER,
    DEVICE_BREAKER,
    HUB_BREAKER,
    CompareRules,
    GateRules,
    ObserveRules,
    ReleasePolicy,
    RolloutRules,
    Rules,
)
from updater.core.versions import parse_version
from updater.golden_files import LOOK_SECONDS, GoldenFiles
from updater.hub.folder import DirectoryHub
from updater.loop import CrashPoints, LoopDependencies, ModelLoop, StepGuard
from updater.metrics import Observer
from updater.perform import Ports
from updater.settings import ModelUpdatesSection, UpdaterSection, UpdaterSettings
from updater.status import Progress
from updater.store.bundles import BundleStore, ChildConverter, DigestOf, StoreOptions, predict_bundle_digest
from updater.store.garbage import References
from updater.store.journal import Journal

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a source is converted to a bundle: by the shipped converter, or by a test's."""

    convert: Convert = run_convert
    digest_of: DigestOf = predict_bundle_digest


@dataclass(frozen=True, slots=True)
class UpdaterDependencies:
    """What the loops of all models share."""

    settings: UpdaterSettings
    run_folder: Path
    journal: Journal
    store: StoreOptions
    clock: Clock
    observer: Observer
    crash: CrashPoints
    stopping: threading.Event
    conversion: Conversion


@dataclass(frozen=True, slots=True)
class ModelUpdater:
    """The update loop of one model, and what other threads use of it."""

    loop: ModelLoop
    commands: CommandQueue
    wake: threading.Event
    progress: Progress
    close: Callable[[], None]


def build_model(
    shared: UpdaterDependencies, settings: ModelSettings, others: Callable[[], Mapping[str, ModelRecord]]
) -> ModelUpdater:
    """Build the loop of one model.

    Args:
        shared: of all models.
        settings: `[[models]]` table of the model, which has a section in `[updater.models]`.
        others: returns the records of all models, by name.

    Raises:
        JournalUnusable: the record of the model cannot be read.
        UnsafeStateFolder: check 1 failed.
    """
    section = shared.settings.updater.models[settings.name]
    wake = threading.Event()
    commands = CommandQueue(wake)
    guard = StepGuard(commands, shared.stopping)
    control = ControlClient(shared.run_folder, settings.name, guard)
    progress = Progress()
    files = GoldenFiles(section.golden, settings.task, section.golden_min_accuracy, shared.clock, LOOK_SECONDS)

    ports = Ports(
        hub=open_hub(shared.settings.updater, settings.name, shared.clock),
        control=control,
        golden=Prober(files, control, settings.task, shared.clock, guard),
        store=_build_store(shared, settings.name, guard, others, progress),
        converter=ChildConverter(
            shared.store.state, ConvertLimits(), guard, shared.conversion.convert, shared.store.limits.reserve_bytes
        ),
        clock=shared.clock,
    )
    parts = LoopDependencies(
        model=settings.name,
        ports=ports,
        journal=shared.journal,
        rules=build_rules(shared.settings.updater, settings.name, settings.device),
        clock=shared.clock,
        observer=shared.observer,
        crash=shared.crash,
        commands=commands,
        guard=guard,
        wake=wake,
        stopping=shared.stopping,
        fresh_id=lambda: _create_update_id(shared.clock),
        jitter=random.SystemRandom().random,
        boot_id=read_boot_id(),
    )
    return ModelUpdater(ModelLoop(parts), commands, wake, progress, control.close)


def build_rules(section: UpdaterSection, name: str, device: str = "auto") -> Rules:
    """Build the rules of one configured model.

    Args:
        section: `[updater]`.
        name: of the model; must be one of `section.models`.
        device: `device` of its `[[models]]` table.
    """
    model, activation = section.models[name], ACTIVATION_BREAKER
    first = section.breaker_first_seconds
    return Rules(
        policy=build_policy(model),
        mode=model.policy.mode,
        gate=GateRules(**model.gate.model_dump()),
        observe=ObserveRules(**model.observe.model_dump()),
        compare=CompareRules(**model.compare.model_dump()),
        rollout=RolloutRules(
            model.rollout, model.steps, model.shadow.share, model.shadow.min_answers, model.shadow.max_seconds
        ),
        breakers={
            BreakerName.HUB: HUB_BREAKER,
            BreakerName.ACTIVATION: BreakerRules(
                activation.trip_after, first, max(first, activation.cap_seconds), activation.probe_seconds
            ),
            BreakerName.DEVICE: _build_device_breaker(section.device_first_seconds, model.observe.window_seconds),
        },
        poll_seconds=model.poll_seconds,
        max_failures_an_hour=section.max_failures_an_hour,
        max_staged_bytes=section.max_revision_bytes,
        cap_bytes=section.retained_bytes,
        device=device,
    )


def build_policy(section: ModelUpdatesSection) -> ReleasePolicy:
    """The revisions to follow on the hub, and which of them may be installed."""
    policy = section.policy
    return ReleasePolicy(
        policy.pattern, policy.prereleases, policy.max_major_jump, policy.deny, policy.pin, section.branch
    )


def _build_device_breaker(first: float, window: float) -> BreakerRules:
    """The rules of the breaker `device`: a failback takes its load and self-test, and a whole observation window."""
    plain = DEVICE_BREAKER
    seconds = window + plain.probe_seconds
    return replace(plain, first_seconds=first, cap_seconds=max(first, plain.cap_seconds), probe_seconds=seconds)


def _build_store(
    shared: UpdaterDependencies,
    name: str,
    guard: StepGuard,
    records: Callable[[], Mapping[str, ModelRecord]],
    progress: Progress,
) -> BundleStore:
    def collect_others() -> References:
        return _collect_references([record for other, record in records().items() if other != name])

    digest_of = shared.conversion.digest_of
    return BundleStore(shared.store, name, shared.clock, guard, collect_others, digest_of, progress)


def open_hub(section: UpdaterSection, name: str, clock: Clock) -> Hub:
    """The folder or the hub of a model; nothing is read yet."""
    model = section.models[name]
    if model.hub_folder is not None:
        return DirectoryHub(model.hub_folder, name, clock)
    from updater.hub.modelscope import open_hub as open_modelscope  # noqa: PLC0415  a folder needs no HTTP library

    policy = build_policy(model)
    # A branch can be moved: under `releases`, one that is named like a release is none.
    return open_modelscope(
        section,
        model.hub_model,
        clock,
        lambda one: not policy.branch and parse_version(one, policy) is not None,
    )


def read_boot_id(path: Path = _BOOT_ID) -> str:
    """Id of this start of the machine, in a container of its host's; empty if the system has none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _create_update_id(clock: Clock) -> str:
    """An update id: sorts by time, and is safe as a folder name."""
    return f"{clock.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def _collect_references(records: Iterable[ModelRecord]) -> References:
    """All bundles, sources and updates that these records refer to."""
    keep = References()
    for record in records:
        rows = [row for row in (record.committed, record.previous) if row is not None]
        update = record.update
        keep |= References(
            frozenset({row.bundle_digest for row in rows} | ({update.bundle_digest} if update else set())),
            frozenset({row.source_digest for row in rows} | ({update.source_digest} if update else set())),
            frozenset({update.update_id} if update else set()),
        )
    return keep
