"""A hub on a socket, the adapter that asks it, and a store that takes from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from common.clock import Clock, SystemClock
from dev.harness.revisions import MODEL, publish_scripted
from dev.harness.scripted_updater import digest_of_scripted
from tests.updater.scripted_hub import MODEL_ID, ScriptedHub
from updater.core.effects import EffectFailure
from updater.core.facts import Release
from updater.core.ports import EffectFailed
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.modelscope import ModelScopeHub
from updater.status import Progress
from updater.store.bundles import BundleStore, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits
from updater.store.transfer import PaceRules

ID = "20260102-030405-abcdef"
REVISION = "v1.0.0"
WEIGHTS = "model.safetensors"
WHOLE = 10.0  # seconds for what goes well
GIB = 1 << 30


@dataclass
class HubBench:
    """What publishes, and what takes."""

    folder: Path
    server: ScriptedHub
    progress: Progress = field(default_factory=Progress)
    pace: PaceRules = field(default_factory=PaceRules)
    clock: Clock = field(default_factory=SystemClock)
    rules: HubHttpOptions = field(init=False)
    token: str = ""
    proxy: str = ""

    def __post_init__(self) -> None:
        """Patience is short."""
        self.rules = HubHttpOptions(self.server.url, connect_seconds=5.0, stall_seconds=5.0)
        (self.folder / "state").mkdir()

    def impatient(self, seconds: float = 0.2) -> None:
        """From now on silence is not endured for long."""
        self.rules = replace(self.rules, stall_seconds=seconds, connect_seconds=seconds)

    @property
    def hub(self) -> ModelScopeHub:
        """The adapter, new."""
        client = HubHttpClient(self.rules, self.clock, lambda: self.token, lambda _scheme, _host: self.proxy)
        return ModelScopeHub(client, MODEL_ID, self.clock, lambda name: name[1:2].isdigit())

    @property
    def staged(self) -> Path:
        """Where fetched files lie."""
        return self.folder / "state" / "incoming" / ID / "files"

    def publish(self, revision: str = REVISION, **script: Any) -> Path:  # noqa: ANN401  of Script
        """Publish a revision; returns its folder in the hub."""
        publish_scripted(self.folder / "hub", revision, **script)
        return self.folder / "hub" / MODEL / revision

    def release(self) -> Release:
        """List the revision."""
        return self.hub.release(REVISION, WHOLE)

    def stage(self, release: Release | None = None, seconds: float = WHOLE) -> str:
        """Fetch the revision; returns its source digest."""
        state = self.folder / "state"
        shared = StoreOptions(state, StagingLimits(0, self.pace))
        store = BundleStore(shared, MODEL, self.clock, lambda: None, References, digest_of_scripted, self.progress)
        return store.stage(ID, release or self.release(), self.hub, GIB, seconds, is_fresh=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[HubBench]:
    """A hub with one whole revision."""
    server = ScriptedHub(tmp_path / "hub" / MODEL)
    made = HubBench(tmp_path, server)
    made.publish()
    yield made
    server.close()


def failure(action: Callable[[], object]) -> EffectFailure:
    """How something failed; it must."""
    with pytest.raises(EffectFailed) as caught:
        action()
    return caught.value.failure
