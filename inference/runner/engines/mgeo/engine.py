"""The MGeo engine: prepares addresses and computes row ranges with `MgeoModel`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from common.errors import InputRefused
from inference.runner.engines.base import (
    AddressItem,
    Item,
    PreparedItem,
    Progress,
    RowRange,
    RowResult,
)
from inference.runner.engines.mgeo.config import EngineConfig
from inference.runner.engines.mgeo.model import MgeoModel, PackedRows, RowGroup
from inference.runner.engines.mgeo.spans import LabelledWord, Window, cut_windows, join_labels
from inference.runner.engines.mgeo.tokenizer import Words, WordTokenizer
from inference.wire import CHARACTERS_A_ROW, AddressSpan, count_address_rows

MAX_TEXT_LENGTH = 65_536  # code points of one address; bounds the tokeniser
# On a CPU larger calls compute no more addresses a second, but delay the next call.
_CALL_ROWS = {"cpu": 16, "cuda": 512}
# Tokens that pass through the network at once: bounds memory; a call with more takes several steps.
STEP_TOKENS = {"cpu": 2048, "cuda": 32_768}
_NO_LABEL = LabelledWord("O", 0.0)
_EVEN_TOKENS = {"cpu": 1, "cuda": 64}  # rows whose lengths differ by less share one attention, padded


@dataclass(frozen=True, slots=True)
class MgeoPreparedItem:
    """Tokenised addresses, in host memory."""

    addresses: tuple[Words, ...]
    last_rows: tuple[int, ...]  # the last device row of each address

    @property
    def rows(self) -> int:
        """Device rows of the item."""
        return self.last_rows[-1] + 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A window of an address: what the network reads at once."""

    address: int  # index in the call
    window: Window
    ids: tuple[int, ...]  # with begin and end token
    scored: tuple[int, ...]  # tokens of `ids` whose labels count


class MgeoEngine:
    """A loaded MGeo on one device. Implements `base.Engine`.

    A device row is CHARACTERS_A_ROW characters of an address, so that rows cost about the same. An address is computed
    as a whole, with its last row; the results of its other rows are None.
    """

    pictures = None

    def __init__(
        self, model: MgeoModel, config: EngineConfig, tokenizer: WordTokenizer, device: str, precision: str
    ) -> None:
        """Use parts of one bundle, all on one device."""
        self.device = device
        self.precision = precision
        self.model = model
        self.config = config
        self._tokenizer = tokenizer
        self._kind = torch.device(device).type
        self.max_call_rows = _CALL_ROWS[self._kind]

    def prepare(self, item: Item) -> MgeoPreparedItem:
        """Tokenise addresses. Any thread.

        Raises:
            InputRefused: an address is empty or too long.
        """
        if not isinstance(item, AddressItem):
            raise RuntimeError("the MGeo engine has no such task")
        words: list[Words] = []
        last_rows: list[int] = []
        rows = 0
        for number, address in enumerate(item.addresses):
            _check_length(address, f"addresses[{number}]")
            words.append(self._tokenizer.encode(address))
            rows += count_address_rows(address)
            last_rows.append(rows - 1)
        return MgeoPreparedItem(tuple(words), tuple(last_rows))

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """Compute row ranges in one device call. Device thread only.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
        """
        chosen = [_list_addresses(part) for part in ranges]
        spans = iter(self.tag([words for part in chosen for _, words in part]))
        results: list[tuple[RowResult, ...]] = []
        for rows, part in zip(ranges, chosen, strict=True):
            found: dict[int, RowResult] = {row: next(spans) for row, _ in part}
            results.append(tuple(found.get(row) for row in range(rows.start, rows.stop)))
        return results

    def tag(self, addresses: Sequence[Words]) -> list[tuple[AddressSpan, ...]]:
        """Tag addresses in one device call. Device thread only."""
        labelled = self.label(addresses)
        return [join_labels(row, words.extents) for row, words in zip(labelled, addresses, strict=True)]

    def label(self, addresses: Sequence[Words]) -> list[list[LabelledWord]]:
        """Label the words of addresses in one device call. Device thread only."""
        parts = [part for number, words in enumerate(addresses) for part in self._cut(number, words)]
        # Every word counts in exactly one window, so each of these is replaced.
        labelled = [[_NO_LABEL] * len(words.first) for words in addresses]
        with torch.inference_mode():
            for step in _split_steps(parts, STEP_TOKENS[self._kind]):
                self._label_step(step, labelled)
        return labelled

    def warm_up(self, progress: Progress) -> None:
        """Run the smallest and the largest call, which allocates memory and selects kernels."""
        longest = Words(
            tuple([self.config.end_token] * (self.config.window - 2)),
            tuple(range(self.config.window - 2)),
            tuple((place, place + 1) for place in range(self.config.window - 2)),
        )
        rows = max(1, self.max_call_rows * CHARACTERS_A_ROW // self.config.window)
        calls = sorted({1, rows})
        for step, count in enumerate(calls):
            self.tag([longest] * count)
            progress("warming_up", (step + 1) / len(calls))

    def close(self) -> None:
        """Free the model and the card's cached memory."""
        del self.model
        if self._kind == "cuda":
            torch.cuda.empty_cache()

    def _cut(self, address: int, words: Words) -> Iterator[_Part]:
        """The windows of an address with their tokens."""
        room = self.config.window - 2  # begin and end token
        for window in cut_windows(words, room):
            start = words.first[window.first]
            stop = words.first[window.stop] if window.stop < len(words.first) else len(words.ids)
            ids = (self.config.begin_token, *words.ids[start : min(stop, start + room)], self.config.end_token)
            scored = tuple(words.first[word] - start + 1 for word in range(window.counts_from, window.counts_to))
            yield _Part(address, window, ids, scored)

    def _label_step(self, parts: Sequence[_Part], labelled: list[list[LabelledWord]]) -> None:
        """Compute parts, which are sorted by length, and put their words' labels where they belong."""
        rows = pack_rows([part.ids for part in parts], _EVEN_TOKENS[self._kind], self.device)
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part.ids))
        scored = [start + token for start, part in zip(starts, parts, strict=False) for token in part.scored]
        probabilities, labels = self.model(rows, torch.tensor(scored, dtype=torch.int64).to(self.device))
        found = iter(zip(probabilities.tolist(), labels.tolist(), strict=True))
        for part in parts:
            for word in range(part.window.counts_from, part.window.counts_to):
                probability, label = next(found)
                labelled[part.address][word] = LabelledWord(self.config.labels[label], probability)


def pack_rows(rows: Sequence[Sequence[int]], even_tokens: int, device: str) -> PackedRows:
    """Pack rows for the network.

    Args:
        rows: token ids of each row, in the order of their lengths.
        even_tokens: rows whose lengths differ by less than this share a group.
        device: of the tensors.
    """
    groups = []
    for _, group in groupby(rows, key=lambda row: -(-len(row) // even_tokens)):
        groups.append(_make_group([len(row) for row in group], device))
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    return PackedRows(ids.to(device), positions.to(device), groups)


def _make_group(lengths: Sequence[int], device: str) -> RowGroup:
    longest = max(lengths)
    if min(lengths) == longest:
        return RowGroup(len(lengths), longest)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    places = mask.flatten().nonzero().flatten()
    return RowGroup(len(lengths), longest, mask[:, None, None, :].to(device), places.to(device))


def _split_steps(parts: Sequence[_Part], max_tokens: int) -> Iterator[list[_Part]]:
    """Parts in the order of their lengths, in steps of so many tokens; at least one part each."""
    step: list[_Part] = []
    tokens = 0
    for part in sorted(parts, key=lambda part: len(part.ids)):
        if step and tokens + len(part.ids) > max_tokens:
            yield step
            step, tokens = [], 0
        step.append(part)
        tokens += len(part.ids)
    if step:
        yield step


def _list_addresses(rows: RowRange[PreparedItem]) -> list[tuple[int, Words]]:
    """The addresses whose last row is in a range, with this row."""
    item = rows.item
    if not isinstance(item, MgeoPreparedItem):
        raise RuntimeError("the item was prepared by another engine")
    pairs = zip(item.last_rows, item.addresses, strict=True)
    return [(row, words) for row, words in pairs if rows.start <= row < rows.stop]


def _check_length(address: str, field: str) -> None:
    if not address:
        raise InputRefused(f"{field} is empty", reason="ADDRESS_EMPTY", field=field)
    if len(address) > MAX_TEXT_LENGTH:
        message = f"{field} has {len(address)} code points; the limit is {MAX_TEXT_LENGTH}"
        raise InputRefused(message, reason="ADDRESS_TOO_LONG", field=field)
