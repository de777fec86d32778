"""The demo's second model: addresses, served from the same server."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from common.bundle import Bundle, bundle_folder
from common.engine_files import Task
from common.sealing import ConvertLimits, run_convert
from dev.demo.stack import (
    BETTER,
    FIRST,
    OVERFLOWING,
    WORSE,
    DemoStack,
    golden_folder,
    mix_spoiling,
    model_settings,
    source_folder,
)
from dev.harness.answers import AddressQuestion, Spans
from dev.harness.demo_model import seal_revisions
from dev.harness.load import AddressLoad
from dev.harness.process import ROOT
from examples.addresses.layout import OVERFLOWING as CHARACTER
from examples.addresses.overflow import overflow_directory
from examples.addresses.worsen import worsen_directory
from inference.runner.engines.base import AddressItem, LoadOptions
from inference.runner.engines.mgeo.load import load_mgeo

ADDRESSES = ROOT / "examples" / "addresses"
MODEL = "addresses"
ITEMS, SPOILING_ITEMS = 60, 6
CALLERS = 2  # the other model has four


def add_addresses(demo: DemoStack, keep_warm_seconds: int = 2) -> DemoStack:
    """Serve addresses from the stack of a demo that has not started, beside its model.

    Makes revisions, seals and commits the first one, and computes the right answers with the bare engine.
    """
    stack, folder = demo.stack, demo.folder

    def source(revision: str) -> Path:
        return source_folder(folder, MODEL, revision)

    (folder / "models" / MODEL).mkdir(parents=True)
    for revision in (FIRST, BETTER):
        shutil.copytree(ADDRESSES / revision, source(revision))
    worsen_directory(source(BETTER), source(WORSE))
    overflow_directory(source(BETTER), source(OVERFLOWING))
    with stack.config.open("a", encoding="utf-8") as file:
        golden = golden_folder(folder, MODEL)
        shutil.copytree(ADDRESSES / "golden", golden)
        file.write(model_settings(stack, MODEL, golden, keep_warm_seconds, Task.ADDRESS_TAGGING))
    questions = read_questions(ITEMS)
    # Shops, as people name them. No golden item has the character.
    spoiling = [AddressQuestion((f"{asked.addresses[0]}{CHARACTER}麟小吃店",)) for asked in questions[:SPOILING_ITEMS]]
    first = seal_revisions(stack.state, {FIRST: source(FIRST)}, MODEL)[FIRST]
    expected = answers_of(stack.state, first, [*questions, *spoiling])
    for revision in (BETTER, OVERFLOWING):
        bundle = run_convert(source(revision), folder / "bare", revision, ConvertLimits(), "float32")
        asked = questions if revision == OVERFLOWING else [*questions, *spoiling]
        expected |= answers_of(folder / "bare", bundle, asked)
    return DemoStack(
        folder,
        stack,
        tuple(questions),
        mix_spoiling(questions, spoiling),
        expected,
        model=MODEL,
        callers=CALLERS,
        make_load=AddressLoad,
        tolerance=0.0,
    )


def read_questions(count: int) -> list[AddressQuestion]:
    """The first items of the golden set."""
    lines = (ADDRESSES / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    return [AddressQuestion(tuple(json.loads(line)["addresses"])) for line in lines[:count]]


def answers_of(
    state: Path, bundle: Bundle, questions: Sequence[AddressQuestion]
) -> dict[tuple[str, AddressQuestion], Spans]:
    """What the bare engine of a sealed bundle answers, by revision and question."""
    options = LoadOptions("cpu", "float32", 1)
    engine = load_mgeo(bundle_folder(state, bundle.bundle_digest), bundle, options, lambda _phase, _share: None)
    found = {}
    for asked in questions:
        tagged = engine.tag(engine.prepare(AddressItem(asked.addresses)).addresses)
        spans = tuple(tuple((span.kind, span.start, span.end) for span in row) for row in tagged)
        found[bundle.revision, asked] = spans
    return found
