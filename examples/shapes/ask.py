"""Ask without a pause, and count: `python -m examples.shapes.ask --seconds 60`.

One caller sends the same question again and again. At the end it says how many answers each revision gave, how many
calls failed, and how long the longest took. The tutorial runs it during an update, where each call is sent once, and
while a runner is killed, with the client's retries (`--retries`).
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hotslot_client import Client, HotslotError, Prediction

PICTURE = Path(__file__).parent / "pictures" / "two-red-circles.png"
STATEMENT = "there are two red circles"


class Caller(Protocol):
    """What is used of a client."""

    def predict(self, picture: Path, statements: list[str], *, model: str) -> Prediction:
        """Judge statements about a picture."""


@dataclass
class Counts:
    """What became of the calls."""

    answers: Counter[str] = field(default_factory=Counter)  # by revision
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    longest_seconds: float = 0.0

    def __str__(self) -> str:
        """For people."""
        calls = self.answers.total() + self.failed.total()
        answers = ", ".join(f"{count:,} by {revision}" for revision, count in self.answers.items())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.failed.items())
        failed = f"{self.failed.total():,} failed{f' ({reasons})' if reasons else ''}"
        return f"{calls:,} calls: answered {answers or 'none'}; {failed}; the longest took {self.longest_seconds:.2f} s"


def main() -> None:
    """Ask from the command line."""
    parser = argparse.ArgumentParser(description="Ask a server without a pause, and count its answers.")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--retries", action="store_true", help="call as programs do: the client sends a call again")
    arguments = parser.parse_args()
    with Client(arguments.address, retries=arguments.retries) as client:
        print(ask(client, arguments.seconds))


def ask(caller: Caller, seconds: float, clock: Callable[[], float] = time.monotonic) -> Counts:
    """Send calls one after the other until the time is over; returns what became of them."""
    counts, ends = Counts(), clock() + seconds
    while (began := clock()) < ends:
        try:
            counts.answers[caller.predict(PICTURE, [STATEMENT], model="shapes").served_by.revision] += 1
        except HotslotError as error:
            counts.failed[error.reason or error.code] += 1
        counts.longest_seconds = max(counts.longest_seconds, clock() - began)
    return counts


if __name__ == "__main__":
    main()
