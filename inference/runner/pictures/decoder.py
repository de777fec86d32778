"""A decoder process: decodes one picture at a time for its runner, so that no picture can harm the one with the model.

It imports neither torch nor NumPy, which starts threads and takes memory when it is imported. It has limits on memory
and CPU time for every picture, is the first to go when memory is short, and ends with its runner. It is started by
`DecoderProcess`.
"""

import argparse
import contextlib
import ctypes
import os
import resource
import socket
import sys
import warnings
from pathlib import Path

from PIL import ImageFile

from common.clock import Clock, SystemClock
from inference.runner.pictures.channel import (
    ESTIMATED,
    GO_ON,
    OVERRUN_FACTOR,
    PIXELS,
    READY,
    REFUSED,
    REQUEST,
    DecodeRequest,
    Response,
    unpack_request,
)
from inference.runner.pictures.cost import MIB, Cost
from inference.runner.pictures.decode import PicturePlan, plan_picture, render
from inference.runner.pictures.file import PictureRefused
from inference.runner.process import bind_to_parent

ADDED_OOM_SCORE = 500
SPARE_MEMORY_BYTES = 32 * MIB  # beside the estimate: the picture's file, Pillow's tables
SPARE_CPU_SECONDS = 2  # RLIMIT_CPU counts whole seconds; the runner kills sooner
KEPT_BYTES = 16 * MIB  # free bytes at the heap's end that are kept for the next picture
HELD_SECONDS = 0.001  # how old an answer may be when the next picture is begun
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_SIZE, _DATA = 0, 5  # fields of /proc/self/statm


def main() -> None:
    """Serve until the runner closes the connection."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    if not bind_to_parent(arguments.parent):
        sys.exit(1)
    _restrict()
    warnings.simplefilter("ignore")  # Pillow's advice to programmers
    # Pillow would raise on a picture of several frames that was cut, or fill it up; the latter hides the damage.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    warnings.simplefilter("ignore")  # Pillow warns of broken metadata, in lines of any length on the runner's log
    Decoder(socket.socket(fileno=arguments.fd), SystemClock()).serve()


class Decoder:
    """Answers a runner's requests."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._base = _read_memory()
        self._held: list[bytes] = []  # answers that are sent with the next one
        self._held_since = 0.0

    def serve(self) -> None:
        """Answer requests until the runner is gone."""
        self._connection.sendall(READY)
        while len(header := self._receive(REQUEST.size)) == REQUEST.size:
            request = unpack_request(header)
            content = self._receive(request.length)
            if len(content) < request.length:
                return
            self._answer(request, content)

    def _answer(self, request: DecodeRequest, content: bytes) -> None:
        limits = request.options.limits
        self._limit(Cost(limits.max_seconds, limits.max_memory_bytes))
        try:
            plan = plan_picture(content, request.side, request.options)
            if not self._may_go_on(request, plan):
                return
            self._limit(plan.cost)
            pixels = render(plan, request.options.rendering).tobytes()
        except PictureRefused as refusal:
            self._refuse(request, refusal)
        except MemoryError:
            costly = PictureRefused("the picture takes more memory than it may", reason="IMAGE_TOO_COSTLY")
            self._refuse(request, costly)
        else:
            self._send(request, Response(PIXELS, length=len(pixels), cost=plan.cost).pack() + pixels)

    def _may_go_on(self, request: DecodeRequest, plan: PicturePlan) -> bool:
        quick, cost = request.quick, plan.cost
        if cost.seconds <= quick.seconds and cost.memory_bytes <= quick.memory_bytes:
            return True
        self._send(request, Response(ESTIMATED, cost=cost).pack())
        return not request.is_joined and self._receive(len(GO_ON)) == GO_ON

    def _refuse(self, request: DecodeRequest, refusal: PictureRefused) -> None:
        message = str(refusal).encode()
        self._send(request, Response(REFUSED, refusal.reason, len(message)).pack() + message)

    def _send(self, request: DecodeRequest, answer: bytes) -> None:
        """Send an answer, or hold it for a moment while the next request is already here.

        Each send wakes the runner, which on a single CPU interrupts this process.
        """
        if not self._held:
            self._held_since = self._clock.monotonic()
        self._held.append(answer)
        if not request.is_followed or self._clock.monotonic() - self._held_since > HELD_SECONDS:
            self._connection.sendall(b"".join(self._held))
            self._held.clear()

    def _receive(self, length: int) -> bytes:
        return self._connection.recv(length, socket.MSG_WAITALL) if length else b""

    def _limit(self, cost: Cost) -> None:
        """Limit this process's memory and CPU time for one picture."""
        more = cost.memory_bytes + SPARE_MEMORY_BYTES + KEPT_BYTES
        for kind, base in zip((resource.RLIMIT_AS, resource.RLIMIT_DATA), self._base, strict=True):
            resource.setrlimit(kind, (base + more, resource.RLIM_INFINITY))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime + OVERRUN_FACTOR * cost.seconds) + SPARE_CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def _read_memory() -> tuple[int, int]:
    """Address space and data of this process, bytes."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[_SIZE]) * _PAGE_BYTES, int(fields[_DATA]) * _PAGE_BYTES


def _restrict() -> None:
    """Be killed first when memory is short, write no file, dump no core, and return freed memory."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # some sandboxes do not permit it; the limits remain
        score.write_text(str(min(1000, int(score.read_text(encoding="ascii")) + ADDED_OOM_SCORE)), encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # not glibc
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


if __name__ == "__main__":
    main()
