"""Small pictures that one decoder process gets at once, and decodes one after the other.

On a single CPU each hand-over between a runner and a decoder takes the CPU from what runs, and leaves cold caches.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from inference.runner.pictures.channel import DecodeRequest
from inference.runner.pictures.cost import Cost
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.pool import DecoderPool
from inference.runner.pictures.process import DecoderProcess, PictureDropped, Pixels
from inference.wire import Picture

Outcome = Pixels | PictureRefused | Cost  # the latter: not decoded, since it is not quick


class JoinedPictures:
    """Pictures for one decoder, which takes them when the first outcome is read. One thread."""

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders
        self._requests: list[DecodeRequest] = []
        self._contents: list[Picture] = []
        self._decoder: DecoderProcess | None = None
        self._outcomes: Iterator[Outcome] | None = None  # None before the first is read
        self._count = 0  # outcomes that were read

    def add(self, request: DecodeRequest, content: Picture) -> None:
        """Add a picture."""
        self._requests.append(request)
        self._contents.append(content)

    def read(self, number: int, may_wait: Callable[[], bool]) -> Outcome:
        """Return the outcome of a picture; of several in the order in which they were added.

        Args:
            number: of the picture.
            may_wait: whether the first one that is read still waits for a decoder.

        Raises:
            DecoderEnded: by this picture, or by one of the next ones.
            DecodersMissing: no decoder could be started in time; the next ones have to be decoded alone.
            PictureDropped: it was not decoded, because the decoder had ended before.
        """
        if self._outcomes is None:
            self._outcomes = self._start(may_wait)
        try:
            for outcome in self._outcomes:
                self._count += 1
                if self._count > number:
                    return outcome
        except BaseException:
            self._drop()
            raise
        raise PictureDropped

    def close(self) -> None:
        """Give the decoder back if all of its answers were read; else end it: the next caller would get the rest."""
        if self._decoder is None or self._outcomes is None:
            return
        with contextlib.suppress(Exception):
            for _ in self._outcomes:  # of pictures that nobody waited for any more
                self._count += 1
        if self._count == len(self._requests):
            self._decoders.give_back(self._decoder)
            self._decoder = None
        else:
            self._drop()

    def _drop(self) -> None:
        """End the decoder, which may be in the middle of an answer."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoders.drop(self._decoder)
            self._decoder = None

    def _start(self, may_wait: Callable[[], bool]) -> Iterator[Outcome]:
        self._outcomes = iter(())  # if no decoder can be started
        self._decoder = self._decoders.take(may_wait)
        last = len(self._requests) - 1
        requests = [
            replace(request, is_joined=True, is_followed=number < last) for number, request in enumerate(self._requests)
        ]
        return self._decoder.decode_joined(requests, self._contents)
