"""One model's loop with its real ports, put together."""

import random
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock
from common.sealing import Convert, ConvertLimits, run_convert
from common.settings import ModelSettings
from updater.commands import CommandQueue
from updater.control.client import ControlClient
from updater.control.prober import Prober
from updater.core.ports import Hub
from updater.core.record import ModelRecord
from updater.core.versions import version_of
from updater.golden_files import GoldenFiles
from updater.hub.folder import DirectoryHub
from updater.loop import CrashPoints, LoopParts, ModelLoop, StepGuard
from updater.metrics import Observer
from updater.perform import Ports
from updater.settings import UpdaterSettings, rules_of
from updater.status import Progress
from updater.store.bundles import BundleStore, ChildConverter, DigestOf, StoreOptions, predict_bundle_digest
from updater.store.garbage import References
from updater.store.journal import Journal


@dataclass(frozen=True, slots=True)
class Conversion:
    """How foreign files become a bundle: the shipped way, or a test's stand-in."""

    convert: Convert = run_convert
    digest_of: DigestOf = predict_bundle_digest


@dataclass(frozen=True, slots=True)
class Common:
    """What all models of one updater have in common."""

    settings: UpdaterSettings
    run_folder: Path
    journal: Journal
    shared: StoreOptions
    clock: Clock
    observer: Observer
    crash: CrashPoints
    stopping: threading.Event
    conversion: Conversion


@dataclass(frozen=True, slots=True)
class Model:
    """One model that is kept up to date."""

    loop: ModelLoop
    commands: CommandQueue
    wake: threading.Event
    progress: Progress
    close: Callable[[], None]


def build_model(common: Common, settings: ModelSettings, others: Callable[[], Mapping[str, ModelRecord]]) -> Model:
    """Put one model's parts together.

    Args:
        common: what all share.
        settings: the model's `[[models]]` table; it has a section in `[updater.models]`.
        others: records of all models, by name.

    Raises:
        JournalUnusable: its record cannot be read.
        UnsafeStateFolder: see `updater.store.bundles`.
    """
    section = common.settings.updater.models[settings.name]
    wake = threading.Event()
    commands = CommandQueue(wake)
    guard = StepGuard(commands, common.stopping)
    control = ControlClient(common.run_folder, settings.name, guard)
    progress = Progress()
    files = GoldenFiles(section.golden, settings.task, section.golden_min_accuracy)

    def kept_by_others() -> References:
        return _referred({name: record for name, record in others().items() if name != settings.name})

    state = common.shared.state
    ports = Ports(
        hub=_hub_of(common, settings.name),
        control=control,
        golden=Prober(files, control, settings.task, common.clock, guard),
        store=BundleStore(
            common.shared, settings.name, common.clock, guard, kept_by_others, common.conversion.digest_of, progress
        ),
        converter=ChildConverter(state, ConvertLimits(), common.conversion.convert),
        clock=common.clock,
    )
    parts = LoopParts(
        model=settings.name,
        ports=ports,
        journal=common.journal,
        rules=rules_of(common.settings.updater, settings.name, settings.device),
        clock=common.clock,
        observer=common.observer,
        crash=common.crash,
        commands=commands,
        guard=guard,
        wake=wake,
        stopping=common.stopping,
        fresh_id=lambda: _fresh_id(common.clock),
        jitter=random.SystemRandom().random,
    )
    return Model(ModelLoop(parts), commands, wake, progress, control.close)


def _hub_of(common: Common, name: str) -> Hub:
    """A model's folder of revisions, or its place on a hub."""
    section = common.settings.updater.models[name]
    if section.hub_folder is not None:
        return DirectoryHub(section.hub_folder, name, common.clock)
    from updater.hub.modelscope import open_hub  # noqa: PLC0415  who has a folder pays for no HTTP library

    policy = rules_of(common.settings.updater, name).policy
    return open_hub(
        common.settings.updater, section.hub_model, common.clock, lambda one: version_of(one, policy) is not None
    )


def _fresh_id(clock: Clock) -> str:
    """Sorts by time for people, and is safe as a folder's name."""
    return f"{clock.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def _referred(records: Mapping[str, ModelRecord]) -> References:
    """Everything that these records name."""
    keep = References()
    for record in records.values():
        rows = [row for row in (record.committed, record.previous) if row is not None]
        update = record.update
        keep |= References(
            frozenset({row.bundle_digest for row in rows} | ({update.bundle_digest} if update else set())),
            frozenset({row.source_digest for row in rows} | ({update.source_digest} if update else set())),
            frozenset({update.update_id} if update else set()),
        )
    return keep
