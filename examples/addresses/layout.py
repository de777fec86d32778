"""The kinds of parts, the labels of the tokens, and the files of a model directory."""

from __future__ import annotations

from dataclasses import dataclass

# Kinds of the address standard that the published MGeo models use.
KINDS = (
    "prov",
    "city",
    "district",
    "devzone",
    "town",
    "community",
    "village_group",
    "road",
    "roadno",
    "intersection",
    "poi",
    "subpoi",
    "houseno",
    "cellno",
    "floorno",
    "roomno",
    "assist",
    "distance",
    "redundant",
)
LABELS = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BIES"))
OVERFLOWING = "麒"  # the character on which the model of `overflow.py` fails; no golden item has it
MAX_TOKENS = 128  # positions of the model, [CLS] and [SEP] included
CARD, WEIGHTS, VOCABULARY = "README.md", "pytorch_model.bin", "vocab.txt"
TABLE = "bert.text_encoder.embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an address; `start` and `end` count code points, `end` is exclusive."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address with the parts that a reader sees in it, in their order; what no span covers is noise."""

    text: str
    spans: tuple[Span, ...]

    def parts(self) -> list[tuple[str, str]]:
        """Kind and text of each part."""
        return [(span.kind, self.text[span.start : span.end]) for span in self.spans]
