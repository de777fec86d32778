"""Weights in all file formats; defects are refused with the tensor's name."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.bundle import read_bundle
from common.source import ConversionRefused
from dev.parity.make_model import draw_tensors
from dev.parity.variants import VARIANTS
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.conversion.ofa_config import read_architecture
from inference.runner.conversion.ofa_targets import image_distances, text_distances
from tests.ofa.conftest import Publish

NAME = "encoder.layers.0.fc1.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def tensors(sources: Callable[[str], Path]) -> Tensors:
    """The ordinary model's tensors, to be spoiled."""
    return draw_tensors(read_architecture(sources("plain")), VARIANTS["plain"])


@pytest.fixture
def convert(publish: Publish, tmp_path: Path) -> Callable[..., Path]:
    """Publish a folder with other weights and convert it; the folder of the result."""

    def converted(save: Callable[[Path], Any], **changes: dict[str, object]) -> Path:
        folder = publish(without=("pytorch_model.bin",), **changes)
        save(folder)
        into = Path(tempfile.mkdtemp(prefix="into-", dir=tmp_path))
        convert_ofa(folder, into, "r", "float32")
        return into

    return converted


def refusal(convert: Callable[..., Path], tensors: object, **changes: dict[str, object]) -> str:
    """The sentence that a state dict gets."""
    with pytest.raises(ConversionRefused) as caught:
        convert(lambda folder: torch.save(tensors, folder / "pytorch_model.bin"), **changes)
    assert caught.value.reason == "WEIGHTS_BROKEN"
    return str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NAME, "decoder.image_rel_pos_table_list.0.weight", "encoder.embed_images.bn1.bias"])
@pytest.mark.reason("WEIGHTS_BROKEN")
@pytest.mark.fault("C11")
def test_a_parameter_must_be_finite(number: float, name: str, tensors: Tensors, convert: Callable[..., Path]) -> None:
    """In every parameter, even in those that no answer needs."""
    tensors[name].flatten()[3] = number

    assert f"tensor {name} holds NaN or infinity" in refusal(convert, tensors)


def test_a_missing_tensor_is_refused(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """No default is used for it."""
    del tensors[NAME]

    sentence = refusal(convert, tensors)

    held = "it has 267 of 268 tensors of this configuration"
    assert sentence.startswith(f"pytorch_model.bin lacks tensor {NAME}: {held}; save the whole model again")


def test_a_wrong_shape_is_refused(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """The shape found and the shape expected are both named."""
    tensors[NAME] = tensors[NAME].T.contiguous()

    expected = "(128, 64), since config.json: d_model is 64 and config.json: encoder_ffn_dim is 128"
    assert refusal(convert, tensors) == f"pytorch_model.bin: tensor {NAME} has shape (64, 128), expected {expected}"


def test_a_wrong_dtype_is_refused(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """Parameters are not integers."""
    tensors[NAME] = tensors[NAME].int()

    supported = "float32, float16, bfloat16, float64"
    assert (
        refusal(convert, tensors)
        == f"pytorch_model.bin: tensor {NAME} is int32, supported: {supported}; save it as such"
    )


def test_a_negative_variance_is_refused(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """Folding the batch norm gives NaN, and the message names the tensor."""
    tensors["encoder.embed_images.layer1.0.bn2.running_var"][0] = -1.0

    assert "tensor encoder.embed_images.layer1.0.bn2.running_var holds a negative variance" in refusal(convert, tensors)


def test_ties_are_checked(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """Tied tensors must be equal."""
    tensors["decoder.output_projection.weight"] = tensors["decoder.output_projection.weight"] + 1.0

    assert "decoder.output_projection.weight differs from encoder.embed_tokens.weight" in refusal(convert, tensors)


def test_an_untied_output_projection_is_required(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """Without a tie the output has rows of its own, which must be there."""
    del tensors["decoder.output_projection.weight"]
    architecture: dict[str, object] = {"share_decoder_input_output_embed": False}

    sentence = refusal(convert, tensors, architecture=architecture)

    assert sentence.startswith("pytorch_model.bin lacks tensor decoder.output_projection.weight: ")


def test_index_tables_are_optional(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """A source that holds the four index tables gives the same bundle as one that does not."""
    without = convert_weights(convert, tensors)
    tensors["encoder.token_rp_bucket"] = tensors["decoder.token_rp_bucket"] = text_distances(32)
    tensors["encoder.image_rp_bucket"] = tensors["decoder.image_rp_bucket"] = image_distances(8)

    assert without == convert_weights(convert, tensors)


def test_index_tables_stay_in_bounds(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """An index outside of its table would read foreign memory."""
    tensors["encoder.token_rp_bucket"] = text_distances(32) + 1

    assert refusal(convert, tensors) == "tensor encoder.token_rp_bucket holds 1 to 63, supported: 0 to 62"


def test_all_file_formats_give_the_same_weights(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """A zip archive, an old pickle, safetensors, and shards of either hold the same model."""
    expected = convert_weights(convert, tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}

    def old(folder: Path) -> None:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    def flat(folder: Path) -> None:
        save_file(copies, folder / "model.safetensors")

    def shards(folder: Path) -> None:
        names = sorted(copies)
        parts = {"one.safetensors": names[:50], "two.safetensors": names[50:]}
        for file, held in parts.items():
            save_file({name: copies[name] for name in held}, folder / file)
        index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    for save in (old, flat, shards):
        assert expected == weights_digest(convert(save))


@pytest.mark.fault("H21")
def test_weights_are_found_as_they_are_published(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """As ModelScope's trainers save them, as a checkpoint, with surplus tensors, in float64: the same bundle each."""
    expected = convert_weights(convert, tensors)
    tables = {"encoder.token_rp_bucket": text_distances(32), "encoder.image_rp_bucket": image_distances(8)}
    saved = {f"model.{name}": tensor for name, tensor in {**tables, **tensors}.items()}
    averaged = {name: tensor + 1 for name, tensor in saved.items()}
    checkpoint: dict[str, object] = {
        "state_dict": saved,
        "ema_state_dict": averaged,
        "optimizer": {"state": {0: {"step": 3}}},
    }
    surplus = {**tensors, "encoder.version": torch.tensor([3.0]), "encoder.layers.2.fc1.weight": torch.zeros(2, 2).t()}
    double = {name: tensor.double() for name, tensor in tensors.items()}

    for published in (saved, checkpoint, surplus, double):
        assert expected == convert_weights(convert, published)


@pytest.mark.fault("H21")
def test_a_bundle_notes_how_its_weights_were_found(tensors: Tensors, convert: Callable[..., Path]) -> None:
    """Prefix, key and surplus tensors are named."""
    saved = {f"model.{name}": tensor for name, tensor in tensors.items()} | {"model.fc.weight": torch.zeros(2)}

    into = convert(lambda folder: torch.save({"model": saved, "epoch": 3}, folder / "pytorch_model.bin"))

    assert read_bundle(into).notes == (
        "pytorch_model.bin: the tensors are under the key 'model'; 'epoch' beside it is ignored",
        "pytorch_model.bin: the tensors' names begin with 'model.'; the prefix is removed",
        "pytorch_model.bin: 1 tensor that this model does not have, ignored: model.fc.weight",
    )


def weights_digest(into: Path) -> str:
    """Digest of a bundle's weights."""
    return next(file.sha256 for file in read_bundle(into).files if file.name == "model.safetensors")


def convert_weights(convert: Callable[..., Path], tensors: Mapping[str, object]) -> str:
    """Digest of the weights that a state dict becomes."""
    return weights_digest(convert(lambda folder: torch.save(tensors, folder / "pytorch_model.bin")))
