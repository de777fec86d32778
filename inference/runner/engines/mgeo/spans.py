"""From labels of words to spans, and long texts in windows. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inference.runner.engines.mgeo.tokenizer import Words
from inference.wire import AddressSpan

_STARTS, _CONTINUES, _ENDS = "BS", "IES", "ES"  # first letters of labels
_KIND = 2  # where the kind begins in a label: "B-prov"
OVERLAP_SHARE = 0.25  # of a window that it shares with the next one


@dataclass(frozen=True, slots=True)
class LabelledWord:
    """The model's label of a word, and its probability."""

    label: str  # for example "B-prov" or "O"
    probability: float  # of this label, 0..1


def join_labels(labelled: Sequence[LabelledWord], extents: Sequence[tuple[int, int]]) -> tuple[AddressSpan, ...]:
    """Join labelled words into spans, by the rules of ModelScope's pipeline, also where the sequence is broken.

    "B" and "S" begin a span, and end one that is open. "I" and "E" belong to the open span, whatever their kind, or
    begin one. "E" and "S" end it. "O" changes nothing: an open span continues with the next "I" or "E". The kind of a
    span is that of its first label.

    Returns:
        Spans in reading order. The probability is the mean over the words that have a label in the span. If that of any
        word is not finite, the labels mean nothing: then one span over all words, whose probability is NaN. Without it
        a model that overflows would seem to find no parts.
    """
    if not all(math.isfinite(word.probability) for word in labelled):
        return (AddressSpan("", extents[0][0], extents[-1][1], math.nan),)
    spans: list[AddressSpan] = []
    open_span: _OpenSpan | None = None
    for word, (start, end) in zip(labelled, extents, strict=True):
        position = word.label[:1] or "O"
        if position in _STARTS:
            if open_span is not None:
                spans.append(open_span.close())
            open_span = _OpenSpan(word.label[_KIND:], start, end, [word.probability])
        elif position in _CONTINUES:
            if open_span is None:
                open_span = _OpenSpan(word.label[_KIND:], start, end, [])
            open_span.end = end
            open_span.probabilities.append(word.probability)
        if open_span is not None and position in _ENDS:
            spans.append(open_span.close())
            open_span = None
    if open_span is not None:
        spans.append(open_span.close())
    return tuple(spans)


@dataclass(slots=True)
class _OpenSpan:
    """A span whose last word may not have come yet."""

    kind: str
    start: int
    end: int
    probabilities: list[float]

    def close(self) -> AddressSpan:
        return AddressSpan(self.kind, self.start, self.end, sum(self.probabilities) / len(self.probabilities))


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive words of a text that the model reads at once, and those of them whose labels count."""

    first: int  # word
    stop: int  # word after the last
    counts_from: int  # word
    counts_to: int  # word after the last


def cut_windows(words: Words, max_tokens: int) -> tuple[Window, ...]:
    """Cut a text into windows that overlap, so that every word is read with what is around it.

    Of two windows that both have a word, the one counts in which it is further from the window's end. A text that fits
    is one window; a word that is longer than a window is read in part.

    Args:
        words: of the text.
        max_tokens: of a window, begin and end token not counted; at least 1.
    """
    count = len(words.first)
    ends = (*words.first[1:], len(words.ids))  # token after each word
    if len(words.ids) <= max_tokens or count <= 1:
        return (Window(0, count, 0, count),) if count else ()
    ranges: list[tuple[int, int]] = []
    start = 0
    while True:
        stop = start + 1
        while stop < count and ends[stop] - words.first[start] <= max_tokens:
            stop += 1
        ranges.append((start, stop))
        if stop == count:
            break
        least = max(ends[stop - 1] - round(OVERLAP_SHARE * max_tokens), ends[stop] - max_tokens)
        after = stop
        while after - 1 > start and words.first[after - 1] >= least:
            after -= 1
        start = after
    borders = [0, *((left[1] + right[0]) // 2 for left, right in pairwise(ranges)), count]
    return tuple(
        Window(first, stop, borders[number], borders[number + 1]) for number, (first, stop) in enumerate(ranges)
    )
