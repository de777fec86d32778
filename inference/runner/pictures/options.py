"""How pictures are decoded, as the settings say."""

from dataclasses import dataclass, field
from enum import StrEnum

from inference.runner.pictures.cost import PictureLimits


class Rendering(StrEnum):
    """Whose eyes decide what the model sees."""

    AS_SEEN = "as_seen"  # a person's, in front of a browser
    AS_STOCK = "as_stock"  # ModelScope's pipeline


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """How pictures are decoded."""

    limits: PictureLimits = field(default_factory=PictureLimits)
    rendering: Rendering = Rendering.AS_SEEN
    may_reduce: bool = True  # large JPEGs are decoded at reduced size; never as stock
