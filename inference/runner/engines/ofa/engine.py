"""The OFA engine: what the runner asks, in the model's terms."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import InputRefused
from inference.runner.device import torch_dtype
from inference.runner.engines.base import Chunk, EntailmentItem, Item, Progress, UnitResult
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.picture import PictureLimits, Pixels, decode
from inference.runner.engines.ofa.positions import PositionBiases
from inference.runner.engines.ofa.tokenizer import Tokenizer
from inference.wire import EntailmentScores

_LEADING = ",.!?*#:;~"
_SPACES = re.compile(r"\s{2,}")


def prompt_of(statement: str, premise: str, max_words: int) -> str:
    """Ask whether a picture, and a premise if there is one, supports a statement.

    Args:
        statement: what is judged.
        premise: what is known beside the picture; empty for nothing.
        max_words: words of each text that are kept; the prompt's tokens are cut later.
    """
    hypothesis = clean(statement, max_words)
    if not premise:
        return f' does the image describe " {hypothesis} "?'
    return f' can image and text1 " {clean(premise, max_words)} " imply text2 " {hypothesis} "?'


def clean(text: str, max_words: int) -> str:
    """Write a text as the training data was written: the order of the steps matters, odd as it is."""
    text = text.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ").replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


_CPU_ROWS, _CUDA_ROWS = 8, 32
_CPU_CALL_BYTES = 4 << 20  # of a layer's widest activations: about what lies in a core's cache


def rows_that_pay(kind: str, row_bytes: int) -> int:
    """How many rows one device call takes.

    On a CPU rows gain from each other only while they share a cache: beyond it each costs what it costs alone, and
    a call of many takes more memory and cannot be interrupted.

    Args:
        kind: "cpu" or "cuda".
        row_bytes: of one row where a layer is widest.
    """
    return _CUDA_ROWS if kind == "cuda" else max(1, min(_CPU_ROWS, _CPU_CALL_BYTES // row_bytes))


def group_rows(lengths: Sequence[int], max_masked_rows: int) -> list[list[int]]:
    """Group rows so that padding never costs more memory than it is worth.

    Rows of one length share one attention bias. As soon as lengths differ, each row has a copy of
    it with its padding hidden, for a large model some 50 MB a row and layer: then only so many
    rows stand together.

    Args:
        lengths: tokens of each row's text.
        max_masked_rows: rows of a group whose lengths differ, at least 1.

    Returns:
        Row numbers, grouped; every row once.
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


MAX_TEXT_LENGTH = 65_536  # code points; the model reads far less, but all of it would be tokenised
_MASKED_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # of one layer's biases when rows are padded
_LOOK_PIXELS = {"cpu": 480 * 480, "cuda": 32 * 480 * 480}  # that the ResNet sees in one call


@dataclass(slots=True)
class OfaPrepared:
    """A decoded picture and its tokenised prompts, in host memory.

    `looks` is written and read on the device thread only: it keeps what the ResNet saw for the
    item's later chunks.
    """

    pixels: Pixels  # (size, size, 3) uint8
    picture: bytes  # digest of the file: equal pictures are looked at once
    prompts: tuple[tuple[int, ...], ...]  # one a statement, with begin and end
    looks: Tensor | None = None  # (patches, width) on the device

    @property
    def rows(self) -> int:
        """Device rows of the item."""
        return len(self.prompts)


@dataclass(frozen=True, slots=True)
class _Row:
    """One statement of one chunk."""

    owner: OfaPrepared
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
        limits: PictureLimits,
    ) -> None:
        """Take the parts, all of one bundle and on one device."""
        self.device = device
        self.precision = precision
        self._kind = torch.device(device).type
        self.model = model
        self._biases = biases
        self._tokenizer = tokenizer
        self._limits = limits
        self._config = config = model.config
        self.max_call_rows = rows_that_pay(self._kind, config.widest_row * torch_dtype(precision).itemsize)
        bias_bytes = config.encoder_heads * (config.patches + config.max_text_tokens) ** 2 * 4
        self.max_masked_rows = max(1, _MASKED_BYTES[self._kind] // bias_bytes)
        self._max_looks = max(1, _LOOK_PIXELS[self._kind] // config.image_size**2)

    def prepare(self, item: Item) -> OfaPrepared:
        """Decode and tokenise an item; on any thread.

        Raises:
            InputRefused: the caller's item is wrong.
        """
        if not isinstance(item, EntailmentItem):
            raise RuntimeError("an OFA engine was given an item of another task")
        _check_length(item.premise, "premise")
        for number, statement in enumerate(item.statements):
            _check_length(statement, f"statements[{number}]")
        return OfaPrepared(
            pixels=decode(item.image, self._config.image_size, self._limits),
            picture=hashlib.sha256(item.image).digest(),
            prompts=tuple(self._prompt(statement, item.premise) for statement in item.statements),
        )

    def compute(self, chunks: Sequence[Chunk]) -> list[tuple[UnitResult, ...]]:
        """Compute chunks in one device call; on the device thread.

        Pictures that several chunks share are looked at once.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
        """
        owners = [_owner(chunk) for chunk in chunks]
        rows = [
            _Row(owner, prompt)
            for owner, chunk in zip(owners, chunks, strict=True)
            for prompt in owner.prompts[chunk.start : chunk.stop]
        ]
        with torch.inference_mode():
            self._look(owners)
            scores = self._score(rows)
        results = iter(EntailmentScores(yes=yes, no=no, maybe=maybe) for yes, no, maybe in scores)
        return [tuple(next(results) for _ in range(chunk.rows)) for chunk in chunks]

    def warm_up(self, progress: Progress) -> None:
        """Run the smallest and the largest call, so that memory is taken and kernels are chosen now.

        Where both are one row, that row is as long as rows get.
        """
        size = self._config.image_size
        blank = np.zeros((size, size, 3), np.uint8)
        longest = "a " * self._config.max_prompt_tokens
        calls = sorted({1, self.max_call_rows})
        for step, rows in enumerate(calls):
            prompts = (self._prompt(longest, ""), *(self._prompt("a", "") for _ in range(rows - 1)))
            self.compute([Chunk(OfaPrepared(blank, b"", prompts), 0, rows)])
            progress("warming_up", (step + 1) / len(calls))

    def close(self) -> None:
        """Give the card's memory back."""
        del self.model, self._biases
        if self._kind == "cuda":
            torch.cuda.empty_cache()

    def _prompt(self, statement: str, premise: str) -> tuple[int, ...]:
        longest = self._config.max_prompt_tokens
        ids = self._tokenizer.encode(prompt_of(statement, premise, longest))[:longest]
        return (self._config.begin_token, *ids, self._config.end_token)

    def _look(self, owners: Sequence[OfaPrepared]) -> None:
        """Fill in what the ResNet sees, once for each picture."""
        known = {owner.picture: owner.looks for owner in owners if owner.looks is not None}
        unseen = {owner.picture: owner.pixels for owner in owners if owner.picture not in known}
        pictures = list(unseen)
        for start in range(0, len(pictures), self._max_looks):
            some = pictures[start : start + self._max_looks]
            pixels = torch.from_numpy(np.stack([unseen[picture] for picture in some])).to(self.device)
            known.update(zip(some, self.model.eyes(pixels), strict=True))
        for owner in owners:
            owner.looks = known[owner.picture]

    def _score(self, rows: Sequence[_Row]) -> list[list[float]]:
        """Probabilities of each row, in order."""
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
        looks = torch.stack([row.owner.looks for row in rows if row.owner.looks is not None])
        result: Tensor = self.model(looks, texts.to(self.device), lengths.to(self.device), self._biases)
        return result.cpu()


def _owner(chunk: Chunk) -> OfaPrepared:
    if not isinstance(chunk.prepared, OfaPrepared):
        raise RuntimeError("an OFA engine was given what another engine prepared")
    return chunk.prepared


def _check_length(text: str, field: str) -> None:
    if len(text) > MAX_TEXT_LENGTH:
        message = f"the text has {len(text)} code points; the limit is {MAX_TEXT_LENGTH}"
        raise InputRefused(message, reason="TEXT_TOO_LONG", field=field)
