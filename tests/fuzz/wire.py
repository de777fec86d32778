"""Malformed messages and frames over real connections to a real server: `make fuzz ARGS=wire`."""

import asyncio
import contextlib
import random
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from dev.chaos.usage import Look, look
from dev.harness import http2
from dev.harness.answers import question
from dev.harness.stack import ENTAILMENT, Stack
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.fuzz.refusals import REASONS
from tests.fuzz.requests import message_bytes, request_bytes
from tests.fuzz.source import Source
from tests.stack.refusal import refusal_of, status_refusal

MESSAGES = 50_000
AT_ONCE = 8  # callers
MAX_GROWTH_MIB = 16.0  # of the server's memory, between the first fifth and the end
_ROUND = 1000  # messages, after which a good call is made and memory is looked at
_ON_A_STREAM = 20  # messages of one stream
_SHARES = (6, 3, 1)  # of unary calls, stream messages, broken connections
_PATH = f"/{ENTAILMENT}/Predict".encode()
_NAMES = (
    b"grpc-timeout",
    b"grpc-encoding",
    b"grpc-accept-encoding",
    b"x-request-id",
    b"traceparent",
    b"odd-bin",
    b"user-agent",
    b"grpc-trace-bin",
    b"content-type",
    b":path",
    b"Odd",
    b"host",
    b"grpc-message",
    b"grpc-status",
    b"te",
)
_VALUES = (
    b"",
    b"1S",
    b"-1S",
    b"9" * 20 + b"H",
    b"gzip",
    b"deflate",
    b"identity",
    b"GET",
    b"application/grpc+json",
    b"!!!",
    b"\xff\xfe",
    b"\0",
)
_CODES = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
_OTHER_REASONS = {"MODEL_UNKNOWN", "QUEUE_FULL", "STATEMENT_REFUSED"}


def run(messages: int, seed: int) -> tuple[str, str]:
    """Send all messages; returns the server's memory and the outcomes, for the report.

    Raises:
        AssertionError: the server or a runner has died, has grown, or answered with an error that is not documented.
    """
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, Stack(Path(name)) as stack:
        stack.wait_calm()
        pids = _pids(stack)
        looks: list[Look] = []
        for _ in range(-(-messages // _ROUND)):
            outcomes += asyncio.run(_send_round(stack, chance))
            stack.check(question())
            looks.append(look(stack.process.pid))
        assert _pids(stack) == pids, "a process was replaced"
        assert stack.process.events("call_crashed") == []
    first = max(one.resident_mib for one in looks[: max(1, len(looks) // 5)])
    last = looks[-1].resident_mib
    assert last - first < MAX_GROWTH_MIB, f"the server has grown from {first:.0f} to {last:.0f} MiB"
    assert looks[-1].descriptors <= looks[0].descriptors + AT_ONCE
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
    return f"{first:.0f} → {last:.0f}", counts


def _pids(stack: Stack) -> tuple[int, set[int]]:
    return stack.process.pid, {slot.pid for slot in stack.control.status().slots}


async def _send_round(stack: Stack, chance: random.Random) -> "Counter[str]":
    """Send _ROUND messages; several callers at once, each with a connection of its own."""
    seeds = iter([chance.getrandbits(64) for _ in range(_ROUND)])
    outcomes: Counter[str] = Counter()
    await asyncio.gather(*(_send_some(stack, seeds, outcomes) for _ in range(AT_ONCE)))
    return outcomes


async def _send_some(stack: Stack, seeds: Iterator[int], outcomes: "Counter[str]") -> None:
    async with grpc.aio.insecure_channel(stack.address) as channel:
        for seed in seeds:
            chance = random.Random(seed)
            match chance.choices(("call", "stream", "connection"), (_SHARES[0], _SHARES[1] / _ON_A_STREAM, _SHARES[2]))[
                0
            ]:
                case "call":
                    outcomes[await _call(channel, _draw(chance, request_bytes))] += 1
                case "stream":
                    further = [random.Random(next(seeds, seed)) for _ in range(_ON_A_STREAM - 1)]
                    outcomes += await _stream(channel, [_draw(one, message_bytes) for one in (chance, *further)])
                case _:
                    outcomes[await asyncio.to_thread(_break_connection, stack.port, chance)] += 1


def _draw(chance: random.Random, build: Any) -> bytes:  # noqa: ANN401  request_bytes or message_bytes
    message: bytes = build(Source(chance.randbytes(chance.randrange(400))))
    return message


async def _call(channel: grpc.aio.Channel, raw: bytes) -> str:
    call: Any = channel.unary_unary(f"/{ENTAILMENT}/Predict", None, pb.PredictResponse.FromString)
    try:
        await call(raw, timeout=30.0)
    except grpc.aio.AioRpcError as error:
        return _check(refusal_of(error))
    return "answered"


async def _stream(channel: grpc.aio.Channel, messages: list[bytes]) -> "Counter[str]":
    """Every message has its outcomes, and the stream ends well."""
    call: Any = channel.stream_stream(f"/{ENTAILMENT}/StreamPredict", None, pb.StreamPredictResponse.FromString)
    outcomes: Counter[str] = Counter()
    stream = call(iter(messages), timeout=60.0)
    async for response in stream:
        for result in response.results:
            is_answer = result.WhichOneof("outcome") == "response"
            outcomes["answered" if is_answer else _check(status_refusal(result.error))] += 1
    assert await stream.code() is grpc.StatusCode.OK
    assert sum(outcomes.values()) >= len(messages)
    return outcomes


def _check(refusal: Any) -> str:  # noqa: ANN401  of tests.stack.refusal
    assert refusal.code in _CODES, refusal
    assert refusal.reason in REASONS | _OTHER_REASONS, refusal
    assert refusal.domain == "hotslot", refusal
    return str(refusal.reason)


def _break_connection(port: int, chance: random.Random) -> str:
    """Send calls with odd header fields and frames, or with bytes that are cut, changed or repeated; then hang up."""
    raw = bytearray(http2.opening())
    for stream in range(1, 2 * chance.randrange(1, 4), 2):
        raw += _odd_call(chance, stream)
    for _ in range(chance.choice((0, 0, 1, 3))):
        place = chance.randrange(len(http2.PREFACE) if chance.random() < 0.9 else 0, len(raw))
        raw[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    end = len(raw) if chance.random() < 0.8 else chance.randrange(len(raw))
    with contextlib.suppress(OSError), http2.connect(port) as connection:
        connection.settimeout(0.05)
        connection.sendall(raw[:end])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 14):
            pass
    return "broken connection"


def _odd_call(chance: random.Random, stream: int) -> bytes:
    """Frames of one call, most of them in order."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": _PATH, b":authority": b"t", b"te": b"trailers"}
    fields[b"content-type"] = b"application/grpc"
    rows = list(fields.items()) + [(chance.choice(_NAMES), _odd_value(chance)) for _ in range(chance.randrange(3))]
    if chance.random() < 0.5:
        place = chance.randrange(len(rows))
        rows[place] = (rows[place][0], _odd_value(chance))
    if chance.random() < 0.1:
        rows.pop(chance.randrange(len(rows)))
    block = b"".join(b"\x10" + _string(name) + _string(value) for name, value in rows)
    message = _draw(chance, request_bytes)
    body = (
        bytes([chance.choice((0, 0, 0, 1, 9))])
        + struct.pack(">I", max(0, len(message) + chance.choice((0, 0, 0, 5, -1))))
        + message
    )
    frames = [
        http2.frame(http2.HEADERS, 4, stream, block),
        http2.frame(http2.DATA, chance.choice((1, 1, 0)), stream, body),
    ]
    for _ in range(chance.choice((0, 0, 1, 2))):
        odd = http2.frame(
            chance.randrange(12),
            chance.randrange(256),
            chance.choice((0, stream, 7)),
            chance.randbytes(chance.randrange(12)),
        )
        frames.insert(chance.randrange(3), odd)
    return b"".join(frames)


def _odd_value(chance: random.Random) -> bytes:
    drawn = chance.randbytes(chance.randrange(40))
    return chance.choice((*_VALUES, drawn, drawn, _PATH[: chance.randrange(len(_PATH))] + drawn))


def _string(raw: bytes) -> bytes:
    """A string of HPACK, not compressed."""
    return (bytes([len(raw)]) if len(raw) < 127 else bytes([127, len(raw) - 127])) + raw
