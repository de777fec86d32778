"""Several statements about one picture share its decoding and its ResNet."""

import pytest
from torch import nn

from dev.parity.pictures import FOLDER
from inference.runner.engines.base import EntailmentItem, PictureFormat, Pixels, RowRange
from inference.runner.engines.ofa import engine as engine_module
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.picture import decode

COLOUR = (FOLDER / "colour.png").read_bytes()
GREY = (FOLDER / "grey.jpg").read_bytes()


class Looks:
    """Counts the pictures that the ResNet sees."""

    def __init__(self, image_encoder: nn.Module) -> None:
        self.pictures = 0
        image_encoder.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[object, ...], _made: object) -> None:
        self.pictures += len(inputs[0])  # type: ignore[arg-type]


@pytest.fixture
def looks(plain: OfaEngine) -> Looks:
    """Pictures seen since the test began."""
    return Looks(plain.model.image_encoder)


def test_one_call_encodes_a_picture_once(plain: OfaEngine, looks: Looks) -> None:
    """Row ranges of one request, and other requests with the same file, share the patch features."""
    one = plain.prepare(EntailmentItem(COLOUR, ("a dog", "two birds", "red"), ""))
    same = plain.prepare(EntailmentItem(COLOUR, ("a man",), "a street"))
    other = plain.prepare(EntailmentItem(GREY, ("a man",), ""))

    plain.compute([RowRange(one, 0, 2), RowRange(other, 0, 1), RowRange(one, 2, 3), RowRange(same, 0, 1)])

    assert looks.pictures == 2


def test_later_calls_reuse_patch_features(plain: OfaEngine, looks: Looks) -> None:
    """A request that is split into several calls is encoded in the first only."""
    item = plain.prepare(EntailmentItem(COLOUR, ("a dog", "two birds"), ""))

    first = plain.compute([RowRange(item, 0, 1)])
    second = plain.compute([RowRange(item, 1, 2)])

    assert looks.pictures == 1
    assert first != second


def test_a_request_is_decoded_once(plain: OfaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many statements there are, the picture's file is decoded once."""
    decoded: list[bytes] = []

    def decode_and_count(content: bytes, pictures: PictureFormat) -> Pixels:
        decoded.append(content)
        return decode(content, pictures)

    monkeypatch.setattr(engine_module, "decode", decode_and_count)

    item = plain.prepare(EntailmentItem(COLOUR, tuple("abcdefgh"), ""))

    assert (item.rows, len(decoded)) == (8, 1)
