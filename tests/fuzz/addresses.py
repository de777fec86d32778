"""Target: addresses, from the caller's characters to words, windows and spans with places in code points and bytes."""

from functools import cache

from common.errors import InputRefused
from hotslot.address.v1 import address_pb2
from inference.runner.engines.mgeo.config import WordRules
from inference.runner.engines.mgeo.spans import LabelledWord, cut_windows, join_labels
from inference.runner.engines.mgeo.tokenizer import Words, WordTokenizer
from inference.server.api.address import ADDRESS, MAX_ADDRESSES
from inference.server.api.task import InputLimits
from inference.server.request import Prediction, ServedBy
from inference.wire import AddressSpan
from tests.fuzz.refusals import check_refusal
from tests.fuzz.source import Source

_MAX_CHARS = 60
_LABELS = ("O", "B-prov", "I-prov", "E-prov", "S-prov", "B-road", "E-road", "I-", "S", "", "X-odd")
_LIMITS = InputLimits(max_image_bytes=1, max_statement_chars=1, max_address_chars=_MAX_CHARS)
_PIECES = (
    "[UNK]",
    "浙",
    "江",
    "省",
    "路",
    "号",
    "a",
    "b",
    "##a",
    "##b",
    "1",
    "2",
    "##1",
    "e",
    "\u0301",
    "😀",
    "-",
    "#",
)


def check(data: bytes) -> None:
    """Check a request, cut its addresses into words and windows, and build the answer to made-up labels."""
    source = Source(data)
    count = source.choose((1, 1, 1, 2, 3, 0, MAX_ADDRESSES + 1))
    texts = [source.text(_MAX_CHARS + 4) for _ in range(min(count, 3))] + ["路"] * max(0, count - 3)
    request = ADDRESS.parse_request(address_pb2.PredictRequest(addresses=texts).SerializeToString())
    try:
        payload = ADDRESS.check(request, _LIMITS)
    except InputRefused as error:
        check_refusal(error)
    else:
        assert payload.addresses == tuple(texts), "the text of the caller is never changed"
    found = [_tag(source, text) for text in texts]
    served_by = ServedBy("addresses", "r1", "sha256:" + "0" * 64, "cpu", "a", "node")
    prediction = Prediction(tuple(found), (), tuple(texts), served_by, 0.0, 0.0, 0.0)
    response = ADDRESS.build_response(prediction)
    for text, result in zip(texts, response.results, strict=True):
        _check_result(text, result)


def _tag(source: Source, text: str) -> tuple[AddressSpan, ...]:
    """Spans of made-up labels for the words of a text."""
    words = _tokenizer(source.choose((True, False))).encode(text)
    _check_words(words, text)
    _check_windows(words, source.integer(1, 20))
    labelled = [LabelledWord(source.choose(_LABELS), 0.5) for _ in words.extents]
    spans = join_labels(labelled, words.extents)
    ends = [0, *(place for span in spans for place in (span.start, span.end)), len(text)]
    assert ends == sorted(ends), "spans are in reading order and do not overlap"
    assert all(span.start < span.end for span in spans)
    return spans


def _check_words(words: Words, text: str) -> None:
    assert len(words.first) == len(words.extents)
    assert list(words.first) == sorted(set(words.first))
    assert all(0 <= start < end <= len(text) for start, end in words.extents)
    assert all(0 <= token < len(_PIECES) for token in words.ids)


def _check_windows(words: Words, max_tokens: int) -> None:
    """Each word counts in exactly one window, which contains it."""
    windows = cut_windows(words, max_tokens)
    counted = [place for window in windows for place in range(window.counts_from, window.counts_to)]
    assert counted == list(range(len(words.first)))
    for window in windows:
        assert window.first <= window.counts_from <= window.counts_to <= window.stop


def _check_result(text: str, result: address_pb2.AddressResult) -> None:
    raw = text.encode()
    for span in result.spans:
        assert text[span.start : span.end] == span.text
        assert raw[span.start_byte : span.end_byte].decode() == span.text
    assert dict(result.components) == {one.kind: one.texts[0] for one in result.all_components}
    assert sum(len(one.texts) for one in result.all_components) == len(result.spans)


@cache
def _tokenizer(by_character: bool) -> WordTokenizer:  # noqa: FBT001
    vocabulary = {piece: number for number, piece in enumerate(_PIECES)}
    return WordTokenizer(vocabulary, WordRules(True, True, True, by_character, "[UNK]"))
