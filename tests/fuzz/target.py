"""The fuzzing targets."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

Check = Callable[[bytes], None]
CORPUS = Path(__file__).with_name("corpus")


@dataclass(frozen=True, slots=True)
class Target:
    """A function that fails or takes too long if an input breaks a promise: `check` of a module in tests/fuzz."""

    name: str
    runs: int  # inputs of a full run
    max_bytes: int  # of an input
    max_seconds: int  # that an input may take
    modules: tuple[str, ...]  # whose coverage guides the fuzzer, and is reported

    def load_check(self) -> Check:
        """Import the target's code."""
        check: Check = importlib.import_module(f"tests.fuzz.{self.name}").check
        return check

    @property
    def corpus_file(self) -> Path:
        """The inputs that the tests replay."""
        return CORPUS / f"{self.name}.zip"

    def read_corpus(self) -> dict[str, bytes]:
        """The inputs that the tests replay, by name; none if nothing has been kept yet."""
        if not self.corpus_file.exists():
            return {}
        with ZipFile(self.corpus_file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


_API = ("entailment", "interceptors", "reading", "stream")
_SCHEDULING = (
    "admission",
    "dispatcher",
    "fair_queue",
    "held_bytes",
    "in_flight",
    "turns",
)
_ADDRESSES = (
    *("inference.server.api.address", "inference.server.api.convert"),
    *(f"inference.runner.engines.mgeo.{name}" for name in ("spans", "tokenizer")),
)
_PICTURES = ("colour", "content", "cost", "decode", "exif", "jpeg", "png", "render", "webp")
_SERVICE = (
    *(f"inference.server.api.{name}" for name in _API),
    *(f"inference.server.scheduling.{name}" for name in _SCHEDULING),
    "inference.server.model.requests",
)

TARGETS = {
    target.name: target
    for target in (
        Target("addresses", 100_000, 512, 5, _ADDRESSES),
        Target("convert", 350_000, 1024, 5, ("inference.server.api.entailment", "inference.server.api.convert")),
        Target("frames", 250_000, 1024, 5, ("inference.wire", "inference.server.runner_client.replies")),
        Target("pictures", 150_000, 1024, 20, tuple(f"inference.runner.pictures.{name}" for name in _PICTURES)),
        Target("service", 50_000, 1024, 30, _SERVICE),
        Target("texts", 200_000, 256, 5, ("inference.server.api.texts", "inference.runner.engines.ofa.tokenizer")),
    )
}
