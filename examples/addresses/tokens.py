"""Addresses as tokens and labels."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer

from examples.addresses import words
from examples.addresses.divisions import read_divisions
from examples.addresses.layout import LABELS, MAX_TOKENS, Address, Span

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FULL_WIDTH_DIGITS = "".join(chr(0xFF10 + digit) for digit in range(10))
_PUNCTUATION = "，。、：；（）【】《》“”‘’？！－—～·"
_LABEL_IDS = {label: number for number, label in enumerate(LABELS)}


def vocabulary() -> list[str]:
    """Single characters, as BERT's Chinese vocabulary has them; letters and digits inside of words with `##`."""
    names = "".join(
        district.province + district.city + district.name + "".join((*district.towns, *district.villages))
        for district in read_divisions()
    )
    pools = (value for value in vars(words).values() if isinstance(value, str | tuple))
    used = set(names) | {char for pool in pools for word in pool for char in word}
    used |= set("中国与和交叉路口汇处十字界往东西南北向米收货人地址甲负单元组队社村民小房户铺商座区馆栋层楼号弄院")
    inside = string.digits + string.ascii_lowercase + _FULL_WIDTH_DIGITS
    ideographs = sorted(char for char in used if "\u3400" <= char <= "\u9fff")
    return [*SPECIAL, *inside, *string.punctuation, *_PUNCTUATION, *(f"##{char}" for char in inside), *ideographs]


def make_tokenizer(vocabulary_file: Path) -> Any:  # noqa: ANN401  the library has no types
    """The tokenizer of BERT's Chinese models, with offsets."""
    return BertWordPieceTokenizer(str(vocabulary_file), lowercase=True)


def encode(tokenizer: Any, addresses: Sequence[Address]) -> tuple[list[list[int]], list[list[int]]]:  # noqa: ANN401
    """Ids and label ids, a list an address, [CLS] and [SEP] included; what is too long is cut."""
    ids, labels = [], []
    for address, encoding in zip(addresses, tokenizer.encode_batch([one.text for one in addresses]), strict=True):
        ids.append(encoding.ids[:MAX_TOKENS])
        labels.append(_label(address.spans, encoding.offsets)[:MAX_TOKENS])
    return ids, labels


def _label(spans: Iterable[Span], offsets: Sequence[tuple[int, int]]) -> list[int]:
    labels = ["O"] * len(offsets)
    for span in spans:
        inside = [
            n for n, (start, end) in enumerate(offsets) if start < end and span.start <= start and end <= span.end
        ]
        if len(inside) == 1:
            labels[inside[0]] = f"S-{span.kind}"
        elif inside:
            labels[inside[0]], labels[inside[-1]] = f"B-{span.kind}", f"E-{span.kind}"
            for n in inside[1:-1]:
                labels[n] = f"I-{span.kind}"
    return [_LABEL_IDS[label] for label in labels]


def decode(labels: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """The spans that labels describe: whole ones only, as B I … E or S."""
    spans: list[Span] = []
    kind, begun = "", 0
    for label, (start, end) in zip(labels, offsets, strict=True):
        place, _, this = label.partition("-")
        if place == "S":
            spans.append(Span(this, start, end))
        if place == "B":
            kind, begun = this, start
        elif this != kind or place not in ("I", "E"):
            kind = ""
        elif place == "E":
            spans.append(Span(kind, begun, end))
            kind = ""
    return spans
