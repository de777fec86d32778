"""Encoded requests of every kind: valid, over a limit, malformed, and oddly encoded."""

from collections.abc import Callable

from hotslot.entailment.v1 import entailment_pb2
from tests.fuzz.source import Source

MAX_IMAGE_BYTES, MAX_CHARS = 48, 24  # limits that a short input reaches
_NUMBERS = (1, 2, 3, 4, 5, 15, 16, 2047, 19000, 536870911, 0)
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


def varint(number: int, spare: int = 0) -> bytes:
    """Encode a varint, with `spare` bytes more than it needs."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F)
    groups += [0] * spare
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def length_field(number: int, payload: bytes, spare: int = 0, off: int = 0) -> bytes:
    """Encode a length-delimited field, whose length may be wrong by `off`."""
    return varint(number << 3 | _LENGTH, spare) + varint(max(0, len(payload) + off), spare) + payload


def picture_bytes(source: Source) -> bytes:
    """A picture field's content, up to a little more than the limit."""
    return source.take(MAX_IMAGE_BYTES + 4)


def request_bytes(source: Source) -> bytes:
    """An encoded PredictRequest."""
    return _damage(source, source.choose((_encode_plain, _encode_plain, _encode_by_hand))(source))


def message_bytes(source: Source) -> bytes:
    """An encoded StreamPredictRequest."""
    raw = b""
    for _ in range(source.choose((0, 1, 1, 2, 3, 65))):
        item_id = source.choose(("", "a", "b", "i" * 128, "i" * 129, "\0", source.text(8)))
        item = length_field(1, item_id.encode()) + length_field(2, request_bytes(source))
        raw += length_field(1, _damage(source, item))
    return _damage(source, raw)


def _encode_plain(source: Source) -> bytes:
    """As clients encode it."""
    request = entailment_pb2.PredictRequest(model=source.choose(("", "", "shapes", source.text(6))))
    if not source.is_one_in(8):
        request.image.content = picture_bytes(source)
    for _ in range(source.choose((1, 0, 2, 3, 32, 33))):
        request.statements.append(source.text(MAX_CHARS + 2))
    request.premise = source.text(MAX_CHARS + 2) if source.is_one_in(3) else ""
    return request.SerializeToString()


def _encode_by_hand(source: Source) -> bytes:
    """Fields in any order, missing, repeated, unknown, of other types, with lengths that are wrong or too long."""
    raw = b""
    for _ in range(source.integer(0, 12)):
        number = source.choose(_NUMBERS)
        raw += source.choose(_FIELDS)(source, number)
    return raw


def _known(source: Source, number: int) -> bytes:
    payload = source.text(MAX_CHARS + 2).encode()
    if number == 2:
        payload = length_field(1, picture_bytes(source), source.choose((0, 0, 0, 1, 4)))
    return length_field(number, payload, source.choose((0, 0, 0, 1, 9)))


def _two_pictures(source: Source, _number: int) -> bytes:
    parts = (length_field(1, picture_bytes(source)), length_field(source.integer(2, 3), source.take(5)))
    order = source.choose(((0,), (0, 0), (0, 1), (1, 0), (0, 1, 0), ()))
    return length_field(2, b"".join(parts[part] for part in order))


def _other_type(source: Source, number: int) -> bytes:
    kind = source.choose((_VARINT, _FIXED64, _FIXED32, _GROUP_END, 6, 7))
    payloads = {
        _VARINT: varint(source.integer(0, 1 << 63), source.choose((0, 3))),
        _FIXED64: bytes(8),
        _FIXED32: bytes(4),
    }
    return varint(number << 3 | kind) + payloads.get(kind, b"")


def _group(source: Source, number: int) -> bytes:
    inside = source.choose((b"", length_field(1, source.take(6)), varint(1 << 3 | _GROUP)))
    return varint(number << 3 | _GROUP) + inside + varint(number << 3 | _GROUP_END)


def _wrong_length(source: Source, number: int) -> bytes:
    return length_field(number, source.take(20), source.choose((0, 1)), source.integer(-20, 20))


def _not_utf8(source: Source, number: int) -> bytes:
    return length_field(
        number, source.choose((b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82"))
    )


_FIELDS: tuple[Callable[[Source, int], bytes], ...] = (
    *(_known, _known, _known, _known),
    *(_two_pictures, _other_type, _group, _wrong_length, _not_utf8),
    lambda source, _number: source.take(16),
)


def _damage(source: Source, raw: bytes) -> bytes:
    """Usually nothing; sometimes the bytes are cut, changed in one place, or followed by others."""
    match source.integer(0, 15):
        case 15:
            return raw[: source.integer(0, len(raw))]
        case 14 if raw:
            place = source.integer(0, len(raw) - 1)
            return raw[:place] + source.integer(0, 255).to_bytes(1, "little") + raw[place + 1 :]
        case 13:
            return raw + source.take(24)
        case _:
            return raw
