"""A publisher's own hash of the weight file, `model_file_sha256` in configuration.json, is compared."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from common.source import ConversionRefused
from inference.runner.conversion.declared_hash import compare_weights
from inference.runner.conversion.explain import explain_folder
from inference.runner.conversion.ofa_plan import plan_ofa
from tests.ofa.conftest import Publish

FILE, KEY = "pytorch_model.bin", "configuration.json: model_file_sha256"


def hash_of(folder: Path) -> str:
    """Of the weight file."""
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


def test_the_file_that_is_meant_is_noted(publish: Publish, sources: Callable[[str], Path]) -> None:
    """In any case of letters, with the algorithm's name or without it; the stock pipeline does not read the key."""
    sha256 = hash_of(sources("plain"))
    for stated in (sha256, f"sha256:{sha256.upper()}"):
        assert plan_ofa(publish(top={"model_file_sha256": stated})).notes == (f"{KEY} is the hash of {FILE}",)
    found = explain_folder(publish(top={"model_file_sha256": sha256}), {"ofa": plan_ofa})
    (part,) = [part for part in found.parts if part.name == KEY]
    assert (part.use, part.stock) == ("used", "does not read it")


def test_another_file_is_refused(publish: Publish) -> None:
    """With both hashes, and what to do."""
    with pytest.raises(ConversionRefused, match=f"{FILE} is not the file that .*; upload the file again") as caught:
        plan_ofa(publish(top={"model_file_sha256": "0" * 64}))
    assert caught.value.reason == "WEIGHTS_BROKEN"


@pytest.mark.parametrize(
    ("file", "stated", "note"),
    [
        (FILE, None, ""),
        (FILE, "abc", "is no SHA-256 of 64 hexadecimal digits; it is not compared"),
        (FILE, {"a": 1}, "is no SHA-256 of 64 hexadecimal digits; it is not compared"),
        ("model.safetensors.index.json", "0" * 64, "is not compared: the weights are in several files"),
    ],
)
def test_what_cannot_be_compared_is_noted(tmp_path: Path, file: str, stated: object, note: str) -> None:
    """Nothing is read for it."""
    assert compare_weights(tmp_path, file, stated) == ((f"{KEY} {note}",) if note else ())
