"""docs/how-to/add-an-engine.md is enough: its blocks, put where they say, make an engine that answers."""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from common import engine_files
from common.bundle import read_bundle
from common.clock import SystemClock
from common.source import ConversionRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner import convert, items
from inference.runner.engines import base
from inference.runner.hardware import CpuOnly
from inference.runner.loading import LoadContext, LoadRefused, load_bundle
from inference.wire import AddressSpan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-an-engine.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PACKAGES = ("inference/runner/conversion/", "inference/runner/engines/gazetteer/")
WORDS = {"浙江省": "prov", "杭州": "city", "杭州市": "city"}


@pytest.fixture
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine of the page: new files in a package of their own, rows in the tables."""
    tables: dict[str, ModuleType] = {
        "common/engine_files.py": engine_files,
        "inference/runner/convert.py": convert,
        "inference/runner/engines/base.py": base,
    }
    for table in (convert.CONVERTERS, base.BUILT_IN, base.ESTIMATORS):
        monkeypatch.setitem(cast("dict[str, object]", table), "gazetteer", None)  # restored afterwards
    package = tmp_path / "added_engine"
    package.mkdir()
    for path, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        code_here = code
        for folder in PACKAGES:
            code_here = code_here.replace(folder.replace("/", ".") + "gazetteer", "added_engine.gazetteer")
            code_here = code_here.replace(folder.replace("/", ".") + "load", "added_engine.load")
        if path in tables:
            names = dict(vars(tables[path]))
            exec(code_here, names)  # noqa: S102  the page's own rows
            if "GAZETTEER" in names:
                monkeypatch.setattr(engine_files, "ENGINES", (*engine_files.ENGINES, names["GAZETTEER"]))
        else:
            (package / Path(path).name).write_text(code_here, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith("added_engine")]:
        del sys.modules[name]


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[dict[str, object]], Path]:
    """A published gazetteer."""

    def make(words: dict[str, object]) -> Path:
        folder = tmp_path / "published"
        folder.mkdir()
        row = {"framework": "pytorch", "task": "token-classification", "model": {"type": "gazetteer"}}
        (folder / "configuration.json").write_text(json.dumps(row), encoding="utf-8")
        (folder / "words.json").write_text(json.dumps(words), encoding="utf-8")
        return folder

    return make


def converted(source: Path, tmp_path: Path) -> Path:
    """The folder that the converting program has filled."""
    into = tmp_path / "into"
    into.mkdir()
    options = ["--source", str(source), "--into", str(into), "--engine", "gazetteer", "--revision", "v1"]
    convert._convert(convert._parse(options))  # noqa: SLF001  the program without its limits
    return into


def loaded(folder: Path) -> base.Engine:
    """The engine, loaded as a runner loads it."""
    context = LoadContext({}, CpuOnly(), SystemClock(), lambda *_args, **_fields: None, 1, lambda *_args: None)
    request = runner_pb2.LoadBundle(directory=str(folder), device="cpu")
    return load_bundle(request, context, lambda _phase, _share: None).engine


@pytest.mark.usefixtures("_added")
def test_the_engine_of_the_page_answers(publish: Callable[[dict[str, object]], Path], tmp_path: Path) -> None:
    """Converted, sealed, loaded with its memory plan, warmed up, measured, and asked in row ranges."""
    folder = converted(publish(dict(WORDS)), tmp_path)
    engine = loaded(folder)

    item = engine.prepare(base.AddressItem(("浙江省杭州市", "X杭州")))
    first, second = engine.compute([base.RowRange(item, 0, 1), base.RowRange(item, 1, 2)])

    assert first == ((AddressSpan("prov", 0, 3, 1.0), AddressSpan("city", 3, 6, 1.0)),)
    assert second == ((AddressSpan("city", 1, 3, 1.0),),)
    assert all(items.is_finite(result) for result in (*first, *second))
    bundle = read_bundle(folder)
    assert bundle.interface is not None
    assert (bundle.engine, bundle.interface.labels) == ("gazetteer", ("city", "prov"))


@pytest.mark.usefixtures("_added")
def test_it_refuses_what_it_cannot_serve(publish: Callable[[dict[str, object]], Path], tmp_path: Path) -> None:
    """A broken source by the conversion, a broken bundle by the load."""
    with pytest.raises(ConversionRefused, match="'杭州' has no kind"):
        converted(publish({"杭州": 3}), tmp_path)
    (tmp_path / "into" / "words.json").write_text("", encoding="utf-8")
    with pytest.raises(LoadRefused):
        loaded(tmp_path / "into")


def test_without_its_rows_nothing_knows_it(publish: Callable[[dict[str, object]], Path], tmp_path: Path) -> None:
    """The tables are the only place."""
    with pytest.raises(ConversionRefused, match="engine 'gazetteer' is unknown"):
        converted(publish(dict(WORDS)), tmp_path)
