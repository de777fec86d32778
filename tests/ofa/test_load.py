"""The engine opens bundles that convert sealed, and refuses others."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.bundle import Bundle
from dev.parity.pictures import FOLDER
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.device import (
    DeviceUnknown,
    default_precision,
    list_devices,
    torch_device,
    torch_dtype,
)
from inference.runner.engines.base import AddressItem, BundleRefused, EntailmentItem, LoadOptions, RowRange, loader_for
from inference.runner.engines.ofa import load
from inference.runner.engines.ofa.config import WEIGHTS_NAME
from inference.runner.engines.ofa.engine import OfaEngine, group_rows
from inference.runner.engines.ofa.load import load_ofa

CPU = LoadOptions("cpu", "float32", 1)


def ignore_progress(_phase: str, _share: float) -> None:
    """Ignore it."""


@pytest.fixture
def staged(sources: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Bundle]:
    """A converted folder, still writable."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle = convert_ofa(sources("plain"), folder, "v1", "float32")
    return folder, bundle


def test_loading_reports_progress(staged: tuple[Path, Bundle]) -> None:
    """Reading and warming up are each reported from start to end."""
    heard: list[tuple[str, float]] = []

    engine = load_ofa(*staged, CPU, lambda phase, share: heard.append((phase, share)))
    engine.warm_up(lambda phase, share: heard.append((phase, share)))

    assert heard[0] == ("reading", 0.0)
    assert ("reading", 1.0) in heard
    assert heard[-1] == ("warming_up", 1.0)
    assert (engine.device, engine.precision) == ("cpu", "float32")


@pytest.mark.parametrize("is_on", [True, False])
def test_kernels_are_loaded_before_the_warm_up(
    is_on: bool,  # noqa: FBT001
    staged: tuple[Path, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the folder of the load's options, in a phase of its own; without a folder there are none."""
    folder = tmp_path / "kernels"
    heard: list[tuple[str, float]] = []
    loaded: list[Path | None] = []

    def load_kernels(folder: Path | None, _log: object, progress: Callable[[float], None]) -> None:
        loaded.append(folder)
        progress(0.5)

    monkeypatch.setattr(load, "load_kernels", load_kernels)
    monkeypatch.setattr(load, "can_use_kernels", lambda *_: True)
    options = LoadOptions("cpu", "float32", 1, kernels=folder if is_on else None)

    load_ofa(*staged, options, lambda phase, share: heard.append((phase, share)))

    assert heard[-1] == ("compiling", 0.5)
    assert loaded == [folder if is_on else None]


def test_warming_up_encodes_as_many_pictures_at_once_as_the_largest_call(staged: tuple[Path, Bundle]) -> None:
    """The first full batch of callers finds its memory allocated and its kernels chosen."""
    engine = load_ofa(*staged, CPU, ignore_progress)
    encoder = engine.model.image_encoder
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda _module, arguments: seen.append(len(arguments[0])))

    engine.warm_up(ignore_progress)

    assert seen == [1, engine.max_call_rows]


def test_names_in_the_file_are_those_of_layout_ofa_1(staged: tuple[Path, Bundle]) -> None:
    """Builds before and after an upgrade read the same bundles, whatever the model's attributes are called."""
    with safe_open(staged[0] / WEIGHTS_NAME, "pt") as file:
        modules = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118  not a mapping

    text = {"words", "text_kind", "text_norm", "prompt_norm"}
    assert modules == {"eyes", "encoder", "decoder", "answers", "positions", *text}


def test_weights_stay_mapped(staged: tuple[Path, Bundle]) -> None:
    """Loading in the stored precision maps the file; parameters take no private memory."""
    engine = load_ofa(*staged, CPU, ignore_progress)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    mapped = [line.split()[0] for line in maps.splitlines() if line.endswith("bundle/model.safetensors")]
    ranges = [range(*(int(part, 16) for part in span.split("-"))) for span in mapped]

    assert all(any(parameter.data_ptr() in one for one in ranges) for parameter in engine.model.parameters())


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_other_tensors_are_refused(change: str, staged: tuple[Path, Bundle]) -> None:
    """A bundle whose tensors are not the engine's is refused by name."""
    folder, bundle = staged
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.feed.widen.bias"
    if change == "shape":
        tensors[name] = tensors[name][1:].clone()
    elif change == "missing":
        del tensors[name]
    else:
        tensors[f"{name}2"] = torch.zeros(1)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(BundleRefused, match=r"feed\.widen\.bias"):
        load_ofa(folder, bundle, CPU, ignore_progress)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("engine.json", b"{}"),
        ("engine.json", b"[]"),
        ("vocab.json", b"{}"),
        ("merges.txt", b"a b c\n"),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
    ],
)
def test_broken_files_are_refused(name: str, content: bytes, staged: tuple[Path, Bundle]) -> None:
    """Every broken file raises the same class, and the message contains no path."""
    folder, bundle = staged
    (folder / name).unlink()
    (folder / name).write_bytes(content)

    with pytest.raises(BundleRefused) as caught:
        load_ofa(folder, bundle, CPU, ignore_progress)

    assert str(folder) not in str(caught.value)


def test_newer_layouts_are_refused(staged: tuple[Path, Bundle]) -> None:
    """A layout of a later build is not read."""
    folder, bundle = staged
    row = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").unlink()
    (folder / "engine.json").write_text(json.dumps({**row, "schema_version": 2}))

    with pytest.raises(BundleRefused, match="schema version 1"):
        load_ofa(folder, bundle, CPU, ignore_progress)


def test_a_bundle_of_another_engine_is_refused(staged: tuple[Path, Bundle]) -> None:
    """The loader checks that the bundle is its own."""
    folder, bundle = staged

    with pytest.raises(BundleRefused, match="for engine 'mgeo'"):
        load_ofa(folder, dataclasses.replace(bundle, engine="mgeo"), CPU, ignore_progress)


def test_an_item_of_another_task_is_a_programming_error(plain: OfaEngine) -> None:
    """It raises RuntimeError, not InputRefused."""
    with pytest.raises(RuntimeError):
        plain.prepare(AddressItem(("street",)))


def test_bad_weights_show_as_nan(staged: tuple[Path, Bundle]) -> None:
    """The engine returns NaN; the runner decides what to do with it."""
    engine = load_ofa(*staged, CPU, ignore_progress)
    engine.model.answer_embeddings = torch.nn.Parameter(torch.full_like(engine.model.answer_embeddings, float("nan")))
    item = engine.prepare(EntailmentItem((FOLDER / "grey.jpg").read_bytes(), ("a dog",), ""))

    (result,) = engine.compute([RowRange(item, 0, 1)])

    assert str(result[0]).count("nan") == 3


def test_engines_are_imported_by_name() -> None:
    """Built-in engines by the bundle's engine, extra engines by the settings."""
    assert id(load_ofa) == id(loader_for("ofa"))
    assert id(os.path.join) == id(loader_for("joined", {"joined": "os.path:join"}))


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    """An unknown engine is a BundleRefused, an extra engine that cannot be imported a RuntimeError."""
    with pytest.raises(BundleRefused, match="'bert' is unknown; this build has mgeo, ofa"):
        loader_for("bert")
    with pytest.raises(RuntimeError, match="cannot be imported"):
        loader_for("gone", {"gone": "os.path:gone"})


def test_devices_are_checked_by_name() -> None:
    """An unknown device or precision is refused with the names of the known ones."""
    assert list_devices()[-1].name == "cpu"
    with pytest.raises(DeviceUnknown, match=r"this machine has .*cpu"):
        torch_device("cuda:77")
    with pytest.raises(DeviceUnknown, match="supported: float32, bfloat16"):
        torch_dtype("int8")


@pytest.mark.parametrize("instructions", [(), ("_is_amx_tile_supported",), ("_is_avx512_bf16_supported",)])
def test_a_cpu_computes_in_bfloat16_only_if_it_multiplies_in_it(
    instructions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated it would be slower and less exact than float32; without a report of torch, float32 is used."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if instructions:
            monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)

    assert default_precision("cpu") == ("bfloat16" if instructions else "float32")


def test_rows_of_one_length_are_grouped() -> None:
    """A limited number of rows of different lengths share a group, and none is lost."""
    assert group_rows([7, 5, 9, 5, 5], 1) == [[1, 3, 4], [0], [2]]
    assert group_rows([7, 5, 9, 5, 5], 3) == [[1, 3, 4], [0, 2]]
    assert group_rows([7, 5, 9, 5, 5], 4) == [[1, 3, 4, 0], [2]]
    assert group_rows([], 4) == []
