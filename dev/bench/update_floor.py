"""The minimum time of an update on this machine: the same bytes processed with minimal code, one step after the other.

It does not verify, resume or report: it receives, hashes, writes and reads, a megabyte at a time in one thread.
"""

import hashlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds of each step."""

    receive: float  # from memory over the loopback, hashed, written, synced
    read: float  # from the disk again, and hashed
    write: float  # of the converted bytes: hashed, written, synced

    @property
    def total(self) -> float:
        """The sum of all steps."""
        return self.receive + self.read + self.write


def measure(folder: Path, source_bytes: int, bundle_bytes: int) -> Floor:
    """Measure once, in a folder on the disk that the update uses.

    Args:
        folder: must exist; files written to it are removed.
        source_bytes: of the published files together.
        bundle_bytes: of what they are converted to.
    """
    path = folder / "floor"
    os.sync()  # what others have left to be written is not ours
    try:
        return Floor(_receive(path, source_bytes), _read(path), _write(path, bundle_bytes))
    finally:
        path.unlink(missing_ok=True)


def _receive(path: Path, size: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send, args=(listener, size))
        sender.start()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        began = time.perf_counter()
        with socket.create_connection(listener.getsockname()) as connection, path.open("wb", buffering=0) as file:
            hashed = hashlib.sha256()
            while count := connection.recv_into(buffer):
                hashed.update(buffer[:count])
                file.write(buffer[:count])
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        sender.join()
    return seconds


def _send(listener: socket.socket, size: int) -> None:
    content = memoryview(os.urandom(CHUNK_BYTES))
    connection, _ = listener.accept()
    with connection:
        for left in range(size, 0, -CHUNK_BYTES):
            connection.sendall(content[: min(left, CHUNK_BYTES)])


def _read(path: Path) -> float:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        hashed = hashlib.sha256()
        while count := file.readinto(buffer):
            hashed.update(buffer[:count])
    return time.perf_counter() - began


def _write(path: Path, size: int) -> float:
    content = memoryview(os.urandom(CHUNK_BYTES))
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        hashed = hashlib.sha256()
        for left in range(size, 0, -CHUNK_BYTES):
            piece = content[: min(left, CHUNK_BYTES)]
            hashed.update(piece)
            file.write(piece)
        os.fsync(file.fileno())
    return time.perf_counter() - began
