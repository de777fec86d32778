"""The OFA engine: prepares entailment items and computes row ranges with `OfaModel`."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import InputRefused
from inference.runner.device import torch_dtype
from inference.runner.engines.base import (
    EntailmentItem,
    Item,
    PictureFormat,
    Pixels,
    PreparedItem,
    Progress,
    RowRange,
    RowResult,
    log_nothing,
)
from inference.runner.engines.kernels import name_kernels
from inference.runner.engines.ofa.gpu import ROW_SIZES, GpuCalls
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.picture import decode
from inference.runner.engines.ofa.positions import PositionBiases
from inference.runner.engines.ofa.tokenizer import Tokenizer
from inference.runner.pictures.options import PictureOptions
from inference.wire import EntailmentScores

_LEADING = ",.!?*#:;~"
_SPACES = re.compile(r"\s{2,}")


def build_prompt(statement: str, premise: str, max_words: int) -> str:
    """Write the prompt that asks whether a picture, and a premise if given, supports a statement.

    The wording is that of the model's fine-tuning data and of ModelScope's pipeline.

    Args:
        statement: text to judge.
        premise: known facts besides the picture; may be empty.
        max_words: words kept of each text; the prompt's tokens are truncated later.
    """
    hypothesis = clean(statement, max_words)
    if not premise:
        return f' does the image describe " {hypothesis} "?'
    return f' can image and text1 " {clean(premise, max_words)} " imply text2 " {hypothesis} "?'


def clean(text: str, max_words: int) -> str:
    """Normalise a text as the training data was normalised; the order of the steps matters."""
    text = text.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ").replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


_CPU_ROWS = 8
_CPU_CALL_BYTES = 4 << 20  # of a layer's widest activation: about the cache of one core


def choose_call_rows(kind: str, row_bytes: int) -> int:
    """Choose the largest number of rows of one device call.

    On a CPU batching helps only while activations fit into the cache; beyond that, more rows take more memory and
    delay the next call without more throughput.

    Args:
        kind: "cpu" or "cuda".
        row_bytes: one row's share of a layer's widest activation.
    """
    return ROW_SIZES[-1] if kind == "cuda" else max(1, min(_CPU_ROWS, _CPU_CALL_BYTES // row_bytes))


def group_rows(lengths: Sequence[int], max_masked_rows: int) -> list[list[int]]:
    """Group rows of similar length, so that padded rows do not exhaust memory.

    Rows of one length share one attention bias. Where lengths differ, each row needs its own copy with its padding
    masked (about 50 MB a row and layer for the large model), so the size of such a group is limited.

    Args:
        lengths: tokens of each row's text.
        max_masked_rows: largest group whose lengths differ, at least 1.

    Returns:
        Row numbers in groups; every row exactly once.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        group = groups[-1] if groups else []
        is_even = bool(group) and lengths[group[0]] == lengths[row]
        if is_even or 0 < len(group) < max_masked_rows:
            group.append(row)
        else:
            groups.append([row])
    return groups


MAX_TEXT_LENGTH = 65_536  # code points; bounds the tokeniser, the model itself reads far less
_MASKED_BYTES = 64 << 20  # of one layer's biases where rows are padded
_RESNET_PIXELS = 480 * 480  # of one call of the ResNet


@dataclass(slots=True)
class OfaPreparedItem:
    """A decoded picture and its tokenised prompts, in host memory.

    `patch_features` is written and read on the device thread only; later row ranges of the item reuse it.
    """

    pixels: Pixels  # (size, size, 3) uint8
    picture: bytes  # digest of the file; equal pictures are encoded once
    prompts: tuple[tuple[int, ...], ...]  # one for each statement, with begin and end token
    patch_features: Tensor | None = None  # (patches, width) on the device

    @property
    def rows(self) -> int:
        """Device rows of the item."""
        return len(self.prompts)


@dataclass(frozen=True, slots=True)
class _Row:
    """One statement of a row range."""

    item: OfaPreparedItem
    prompt: tuple[int, ...]


class OfaEngine:
    """A loaded OFA on one device. Implements `base.Engine`."""

    def __init__(
        self,
        model: OfaModel,
        biases: PositionBiases,
        tokenizer: Tokenizer,
        device: str,
        precision: str,
        pictures: PictureOptions,
        log: Callable[..., None] = log_nothing,
    ) -> None:
        """Use parts of one bundle, all on one device."""
        self.device = device
        self.precision = precision
        self._kind = torch.device(device).type
        self.model = model
        self._biases = biases
        self._tokenizer = tokenizer
        self._config = config = model.config
        self.pictures = PictureFormat(config.image_size, pictures)
        self.max_call_rows = choose_call_rows(self._kind, config.widest_row * torch_dtype(precision).itemsize)
        bias_bytes = config.encoder_heads * (config.patches + config.max_text_tokens) ** 2 * 4
        self.max_masked_rows = max(1, _MASKED_BYTES // bias_bytes)
        self._max_pictures = max(1, _RESNET_PIXELS // config.image_size**2)
        self.gpu = GpuCalls(model, biases, log) if self._kind == "cuda" else None

    @property
    def kernels(self) -> str:
        """Which compiled kernels compute, see `name_kernels`."""
        return name_kernels()

    def prepare(self, item: Item) -> OfaPreparedItem:
        """Tokenise an item, and decode its picture unless that is done. Any thread.

        Raises:
            InputRefused: the caller's item is invalid.
        """
        if not isinstance(item, EntailmentItem):
            raise RuntimeError("the OFA engine has no such task")
        _check_length(item.premise, "premise")
        for number, statement in enumerate(item.statements):
            _check_length(statement, f"statements[{number}]")
        return OfaPreparedItem(
            pixels=decode(item.image, self.pictures) if item.pixels is None else item.pixels,
            picture=hashlib.sha256(item.image).digest(),
            prompts=tuple(self._prompt(statement, item.premise) for statement in item.statements),
        )

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """Compute row ranges in one device call; each picture is encoded once. Device thread only.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
        """
        items = [_ofa_item(part.item) for part in ranges]
        rows = [
            _Row(item, prompt)
            for item, part in zip(items, ranges, strict=True)
            for prompt in item.prompts[part.start : part.stop]
        ]
        with torch.inference_mode():
            self._encode_pictures(items)
            scores = self._score(rows)
        results = iter(EntailmentScores(yes=yes, no=no, maybe=maybe) for yes, no, maybe in scores)
        return [tuple(next(results) for _ in range(part.rows)) for part in ranges]

    def warm_up(self, progress: Progress) -> None:
        """Run the smallest and the largest call, which allocates memory and selects kernels.

        One row of each call has the longest prompt; the largest call has as many pictures as the ResNet takes at once.
        On a GPU calls have a few sizes, of which every one runs.
        """
        if self.gpu is not None:
            self.gpu.warm_up(progress)
            return
        size = self._config.image_size
        blank = np.zeros((size, size, 3), np.uint8)
        longest = "a " * self._config.max_prompt_tokens
        calls = sorted({1, self.max_call_rows})
        for step, rows in enumerate(calls):
            prompts = (self._prompt(longest, ""), *(self._prompt("a", "") for _ in range(rows - 1)))
            keys = [b"%d" % (number % self._max_pictures) for number in range(rows)]
            items = [OfaPreparedItem(blank, key, (prompt,)) for key, prompt in zip(keys, prompts, strict=True)]
            self.compute([RowRange(item, 0, 1) for item in items])
            progress("warming_up", (step + 1) / len(calls))

    def close(self) -> None:
        """Free the model and the card's cached memory."""
        del self.model, self._biases, self.gpu
        if self._kind == "cuda":
            torch.cuda.empty_cache()

    def _prompt(self, statement: str, premise: str) -> tuple[int, ...]:
        longest = self._config.max_prompt_tokens
        ids = self._tokenizer.encode(build_prompt(statement, premise, longest))[:longest]
        return (self._config.begin_token, *ids, self._config.end_token)

    def _encode_pictures(self, items: Sequence[OfaPreparedItem]) -> None:
        """Set `patch_features` of every item; computes each picture once."""
        known = {item.picture: item.patch_features for item in items if item.patch_features is not None}
        missing = {item.picture: item.pixels for item in items if item.picture not in known}
        pictures = list(missing)
        if self.gpu is not None:
            known.update(zip(pictures, self.gpu.encode(list(missing.values())), strict=True))
            pictures = []
        for start in range(0, len(pictures), self._max_pictures):
            some = pictures[start : start + self._max_pictures]
            pixels = torch.from_numpy(np.stack([missing[picture] for picture in some])).to(self.device)
            known.update(zip(some, self.model.image_encoder(pixels), strict=True))
        for item in items:
            item.patch_features = known[item.picture]

    def _score(self, rows: Sequence[_Row]) -> list[list[float]]:
        """Label probabilities of each row, in order."""
        if self.gpu is not None:
            features = [row.item.patch_features for row in rows if row.item.patch_features is not None]
            return self.gpu.score(features, [row.prompt for row in rows])
        scores: list[list[float]] = [[]] * len(rows)
        for group in group_rows([len(row.prompt) for row in rows], self.max_masked_rows):
            found = self._score_group([rows[number] for number in group])
            for number, probabilities in zip(group, found.tolist(), strict=True):
                scores[number] = probabilities
        return scores

    def _score_group(self, rows: Sequence[_Row]) -> Tensor:
        """(rows, 3) float32 on the host, in the order of LABELS."""
        lengths = torch.tensor([len(row.prompt) for row in rows])
        texts = torch.full((len(rows), int(lengths.max())), self._config.pad_token)
        for number, row in enumerate(rows):
            texts[number, : len(row.prompt)] = torch.tensor(row.prompt)
        features = torch.stack([row.item.patch_features for row in rows if row.item.patch_features is not None])
        result: Tensor = self.model(features, texts.to(self.device), lengths.to(self.device), self._biases)
        return result.cpu()


def _ofa_item(item: PreparedItem) -> OfaPreparedItem:
    if not isinstance(item, OfaPreparedItem):
        raise RuntimeError("the item was prepared by another engine")
    return item


def _check_length(text: str, field: str) -> None:
    if len(text) > MAX_TEXT_LENGTH:
        message = f"the text has {len(text)} code points; the limit is {MAX_TEXT_LENGTH}"
        raise InputRefused(message, reason="TEXT_TOO_LONG", field=field)
