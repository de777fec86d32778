"""Tensors are found in what training programs save: under prefixes and keys, beside others; ambiguity is refused."""

import pytest

from common.source import ConversionRefused
from inference.runner.conversion.pickle_machine import PickledStorage, PickledTensor
from inference.runner.conversion.state_dict import TensorNames, find_state_dict, match_names, summarize_names

REQUIRED = ("encoder.a", "encoder.b", "decoder.a")
WANTED = TensorNames(REQUIRED, (*REQUIRED, "encoder.table"), stock_prefix="model.")
FILE = "pytorch_model.bin"


def table(prefix: str = "", names: tuple[str, ...] = REQUIRED) -> dict[str, PickledTensor]:
    """A state dict whose tensors can be told apart."""
    return {f"{prefix}{name}": PickledTensor(PickledStorage("float32", prefix + name, 1), 0, (), ()) for name in names}


@pytest.mark.parametrize(
    ("names", "prefix", "surplus"),
    [
        (table(), "", ()),
        (table("module."), "module.", ()),
        (table("_orig_mod.module.model."), "_orig_mod.module.model.", ()),
        (table() | table("ema."), "", tuple(sorted(table("ema.")))),
        (table() | table("model."), "model.", tuple(sorted(REQUIRED))),
        (table("net.") | table("net_ema."), "net.", tuple(sorted(table("net_ema.")))),
        (table("model.") | table(names=("encoder.table",)), "model.", ("encoder.table",)),
        (table("model.", ("encoder.a",)) | table(names=("encoder.b", "decoder.a")), "", ("model.encoder.a",)),
    ],
)
@pytest.mark.fault("H21")
def test_a_prefix_is_found(names: dict[str, object], prefix: str, surplus: tuple[str, ...]) -> None:
    """The one under which most names are; of two complete ones the published library's, else the one not averaged."""
    matched = match_names(FILE, names, WANTED)

    assert matched.prefix == prefix
    assert matched.surplus == surplus
    assert all(name == prefix + known for known, name in matched.file_names.items())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (table("student.") | table("teacher."), "several times, under 'student.', 'teacher.'; publish one of them"),
        (table(names=("bert.x", "bert.y")), "no tensor of this model: it has 'bert.x', 'bert.y' and the like, exp"),
    ],
)
@pytest.mark.fault("H21")
def test_ambiguous_names_are_refused(names: dict[str, object], sentence: str) -> None:
    """Two complete sets, and a file of another architecture."""
    with pytest.raises(ConversionRefused, match=sentence):
        match_names(FILE, names, WANTED)


LIGHTNING = {"state_dict": table("model."), "epoch": 3, "optimizer_states": [{"state": {0: table("exp_avg.")}}]}


@pytest.mark.parametrize(
    ("content", "tensors", "notes"),
    [
        (table(), table(), ()),
        ({**table(), "epoch": 3}, table(), (f"{FILE}: 'epoch' beside the tensors is ignored",)),
        (
            LIGHTNING,
            table("model."),
            (f"{FILE}: the tensors are under the key 'state_dict'; 'epoch', 'optimizer_states' beside it is ignored",),
        ),
        (
            {"model": table("x."), "model_ema": table("y.")},
            table("x."),
            (f"{FILE}: the tensors are under the key 'model'; 'model_ema' beside it is ignored",),
        ),
        ({"ema": table()}, table(), (f"{FILE}: the tensors are under the key 'ema'",)),
        ({"a": {"b": table()}, "c": table("x.", ("encoder.a",))}, table(), None),
        ({**table(), "ema": table("ema.")}, table(), (f"{FILE}: 'ema' beside the tensors is ignored",)),
    ],
)
@pytest.mark.fault("H21")
def test_wrapped_state_dicts_are_found(
    content: dict[str, object], tensors: dict[str, PickledTensor], notes: tuple[str, ...] | None
) -> None:
    """Checkpoints of training loops, of Lightning, and with averaged weights beside the weights."""
    found = find_state_dict(FILE, content, WANTED)

    assert found.tensors == tensors
    assert notes is None or found.notes == notes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"student": table(), "teacher": table("t.")},
            "under the keys 'student', 'teacher'; publish one",
        ),
        ({"epoch": 3}, "holds a dictionary without tensors, supported: named tensors"),
        ([table()], "holds a list, supported: named tensors"),
    ],
)
@pytest.mark.fault("H21")
def test_unclear_checkpoints_are_refused(content: object, sentence: str) -> None:
    """The sentence names the keys."""
    with pytest.raises(ConversionRefused, match=sentence):
        find_state_dict(FILE, content, WANTED)


def test_names_are_summarized() -> None:
    """In groups, with what the names of a group have in common."""
    names = ["ema.decay", "ema.encoder.a", "fc.weight", "encoder.layers.2.fc1.weight", "encoder.layers.2.fc1.bias"]

    assert summarize_names(names) == "ema.… (2), encoder.layers.2.fc1.… (2), fc.weight"


def test_a_circle_in_a_pickle_ends() -> None:
    """A dictionary that contains itself is searched once."""
    content: dict[str, object] = {"state_dict": table()}
    content["self"] = content

    assert find_state_dict(FILE, content, WANTED).tensors == table()
