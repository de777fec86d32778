"""One run of a batch: what is left to do, how it is sent, shown and summed up."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from google.rpc import status_pb2

from cli.batch.ordering import sort_keys, without
from cli.batch.progress import Position, ProgressView
from cli.batch.results import Counts, ResultsFile, encode_line
from cli.batch.sender import GaveUp, Sender, SendRules
from cli.batch.sources import Row, Source, key_of
from cli.batch.tasks import BATCH_TASKS
from cli.batch.window import StopBatch
from cli.clients import explain_failure, format_status
from cli.endpoint import Endpoint
from cli.output import ABSENT, BAD, DIM, print_text, seconds
from cli.problems import CommandFailed
from common.clock import Clock

_SHOW_SECONDS = 0.25


class BatchRun:
    """A run over the rows of a source that have no line in the results.

    Args:
        source: of the rows.
        results: which are continued.
        limit: only the first so many rows; None: all.
        clock: of rates and waits.
    """

    def __init__(self, source: Source, results: ResultsFile, limit: int | None, clock: Clock) -> None:
        self._source = source
        self._results = results
        self._limit = limit
        self._clock = clock
        self._counts = Counts()
        self._position = Position(0, 0)
        self._sent = 0  # rows that this run has finished
        self._seconds = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every line of the results is an answer; of a run that was not interrupted."""
        return not self._counts.failed

    def go(self, endpoint: Endpoint, rules: SendRules, *, retry_failed: bool) -> bool:
        """Send what is left; returns False if Ctrl-C or SIGTERM has stopped it.

        Raises:
            CommandFailed: the server does not answer, or refuses everything.
            OSError: the results could not be written.
        """
        if retry_failed:
            self._results.drop_failed()
        done = sort_keys(self._results.read_keys(self._counts))
        total = self._source.count()
        self._position.total = total if self._limit is None else min(total, self._limit)
        self._position.rows = min(self._position.total, self._counts.answered + self._counts.failed)
        rows = itertools.islice(self._source.rows(), self._limit)
        began = self._clock.monotonic()
        try:
            asyncio.run(self._send(endpoint, rules, without(rows, done, key_of)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return False
        except StopBatch as error:
            raise CommandFailed(f"{error.failure.message} ({error.failure.reason})") from error
        except grpc.RpcError as error:
            raise explain_failure(error, endpoint, rules.patience_seconds) from error
        except GaveUp as error:
            raise _explain_silence(error, endpoint, rules) from error
        finally:
            self._seconds = self._clock.monotonic() - began
        return True

    async def _send(self, endpoint: Endpoint, rules: SendRules, rows: Iterator[Row]) -> None:
        with _cancelled_by_sigterm(), ProgressView(self._position, self._clock) as view:
            showing = asyncio.create_task(_show_often(view))
            try:
                async with endpoint.open_async() as channel:
                    sender = Sender(
                        channel,
                        endpoint.metadata,
                        BATCH_TASKS[self._source.task],
                        rules,
                        self._write,
                        self._results.sync,
                        self._clock,
                    )
                    await sender.run(rows)
            finally:
                showing.cancel()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        """Write lines, then count them."""
        self._results.append(b"".join(map(encode_line, lines)))
        for line in lines:
            self._counts.add(line)
            if "served_by" in line:
                self._position.revision = line["served_by"]["revision"]
        self._sent += len(lines)
        self._position.rows += len(lines)

    def summary(self) -> dict[str, object]:
        """Totals of the results and of this run, for JSON."""
        return {
            "rows": self._position.total,
            "answered": self._counts.answered,
            "failed": self._counts.failed,
            "revisions": dict(self._counts.by_revision),
            "reasons": dict(self._counts.by_reason),
            "sent": self._sent,
            "seconds": round(self._seconds, 3),
        }

    def show_summary(self, out: Path) -> None:
        """Print it."""
        counts = self._counts
        left = max(0, self._position.total - counts.answered - counts.failed)
        parts = [f"{self._position.total:,} rows", f"{counts.answered:,} answered"]
        parts += [f"{counts.failed:,} without an answer"] if counts.failed else []
        parts += [f"{left:,} not sent yet"] if left else []
        if self._sent and self._seconds:
            parts.append(f"{self._sent:,} in {seconds(self._seconds)}, {self._sent / self._seconds:,.0f} rows/s")
        print_text(" · ".join(parts))
        for revision, count in counts.by_revision.most_common():
            print_text(f"  {revision or ABSENT}  ", (f"{count:,}", DIM))
        for reason, count in counts.by_reason.most_common():
            print_text(("  " + reason, BAD), "  ", (f"{count:,}", DIM))
        print_text((str(out), DIM))


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """SIGTERM cancels the current task; afterwards it does again what it did before, which a loop's handler forgets."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel(_number: int, _frame: FrameType | None) -> None:
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _show_often(view: ProgressView) -> None:
    while True:
        view.update()
        await asyncio.sleep(_SHOW_SECONDS)


def _explain_silence(error: GaveUp, endpoint: Endpoint, rules: SendRules) -> CommandFailed:
    again = f"nothing was answered for {rules.patience_seconds:g} s; the same command goes on where it has stopped"
    if isinstance(error.cause, status_pb2.Status):
        return CommandFailed(f"{format_status(error.cause)}; {again}")
    if error.cause is not None:
        return CommandFailed(f"{explain_failure(error.cause, endpoint, rules.patience_seconds)}; {again}")
    return CommandFailed(f"{endpoint.address}: {again}")
