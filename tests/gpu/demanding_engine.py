"""The OFA engine, with a workspace for every call that the driver must supply anew.

The engine itself holds what its largest call needs from its warm-up on, so that a card that fills up later stops no
call of it. Other engines allocate as they compute; this one stands for them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from common.bundle import Bundle, bundle_folder, compute_bundle_digest, write_bundle
from inference.runner.engines.base import (
    Engine,
    Item,
    LoadOptions,
    PictureFormat,
    PreparedItem,
    Progress,
    RowRange,
    RowResult,
)
from inference.runner.engines.ofa.load import estimate_ofa_memory, load_ofa
from inference.runner.hardware import TorchHardware

NAME = "demanding"
ENGINES = {NAME: "tests.gpu.demanding_engine:load"}  # for RunnerSpec.extra_engines
ROW_BYTES = 32 << 20  # of the workspace
MEMORY_ESTIMATOR = estimate_ofa_memory
HARDWARE = TorchHardware()


def relabel(state: Path, bundle: Bundle) -> Bundle:
    """The same files as a bundle of this engine."""
    digest = compute_bundle_digest(bundle.source_digest, NAME, bundle.converter, bundle.precision)
    ours = replace(bundle, bundle_digest=digest, engine=NAME)
    folder = bundle_folder(state, digest)
    folder.mkdir()
    for file in bundle.files:
        (folder / file.name).hardlink_to(bundle_folder(state, bundle.bundle_digest) / file.name)
    write_bundle(folder, ours)
    return ours


def load(folder: Path, bundle: Bundle, options: LoadOptions, progress: Progress) -> Engine:
    """Open a bundle that `relabel` wrote."""
    return DemandingEngine(cast("Engine", load_ofa(folder, replace(bundle, engine="ofa"), options, progress)))


class DemandingEngine:
    """Implements `base.Engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device, self.precision = engine.device, engine.precision
        self.max_call_rows = engine.max_call_rows
        self.pictures: PictureFormat | None = engine.pictures

    def prepare(self, item: Item) -> PreparedItem:
        """As the engine does."""
        return self._engine.prepare(item)

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """As the engine does, while it holds the workspace."""
        if self.device == "cpu":
            return self._engine.compute(ranges)
        torch.cuda.empty_cache()
        workspace = torch.empty(ROW_BYTES * sum(part.rows for part in ranges), dtype=torch.uint8, device=self.device)
        try:
            return self._engine.compute(ranges)
        finally:
            del workspace
            torch.cuda.empty_cache()

    def warm_up(self, progress: Progress) -> None:
        """As the engine does."""
        self._engine.warm_up(progress)

    def close(self) -> None:
        """As the engine does."""
        self._engine.close()
