"""`hotslot logs …`: tells a log as a story. Works without a server."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from cli.monitoring.log_calls import explain_slow
from cli.monitoring.log_story import Episode, Story, find_cause, tell_story
from cli.output import BAD, DIM, DOUBTFUL, GOOD, print_json, print_text, seconds
from cli.problems import CommandFailed
from cli.settings import AsJson
from common.durable import NotRegular, open_regular

app = typer.Typer(no_args_is_help=True)
_SHOWN_CALLS_SECONDS = 0.1  # a slowest call that took less is not worth a line

STDIN = Path("-")
MAX_LOG_BYTES = 16 << 30
_MAX_LINE_CHARS = 1 << 20


@app.callback()
def logs() -> None:
    """Read hotslot's logs."""


@app.command(
    epilog="Example:  hotslot logs explain hotslot.log\n\n"
    "Example:  journalctl -u hotslot -o cat | hotslot logs explain\n\n"
    "Example:  kubectl logs POD | hotslot logs explain\n\n"
    "Next:  docs/how-to/read-the-logs.md leads from single lines to causes."
)
def explain(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The log; without one, standard input.", show_default=False),
    ] = None,
    *,
    only_bad: Annotated[bool, typer.Option("--only-bad", help="Leave out what went well.", show_default=False)] = False,
    as_json: AsJson = False,
) -> None:
    """Tell a log as a story: starts, updates, deaths, swaps, errors and slow calls, with times, causes and what to do.

    Reads the JSON lines of all processes, also after what a container runtime puts
    before them. Lines that are none are counted.
    """
    with open_log(None if file == STDIN else file) as lines:
        story = tell_story(lines)
    if story.begins is None:
        raise CommandFailed("no line is an event of hotslot: give the output of `hotslot serve`")
    if as_json:
        print_json(_to_json(story))
    else:
        _print(story, shows_good=not only_bad)


@contextmanager
def open_log(file: Path | None) -> Iterator[Iterator[str]]:
    """The lines of a log, or of standard input; what is not UTF-8 is replaced, and a long line is cut in several.

    Raises:
        CommandFailed: it is no regular file, or has more than MAX_LOG_BYTES.
        OSError: it cannot be read.
    """
    if file is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield _read_lines(sys.stdin)
        return
    try:
        raw = open_regular(file)
    except NotRegular as error:
        raise CommandFailed(f"{file} is {error.strerror}; name a log file") from error
    with raw, io.TextIOWrapper(raw, encoding="utf-8", errors="replace") as lines:
        if os.fstat(raw.fileno()).st_size > MAX_LOG_BYTES:
            raise CommandFailed(f"{file} has more than {MAX_LOG_BYTES >> 30} GiB; give its end, for example by `tail`")
        yield _read_lines(lines)


def _read_lines(file: TextIO) -> Iterator[str]:
    return iter(lambda: file.readline(_MAX_LINE_CHARS), "")


def _print(story: Story, *, shows_good: bool) -> None:
    _print_head(story)
    for episode in story.episodes:
        if shows_good or episode.is_bad:
            _print_episode(episode)
    slow = [event for event in story.calls.slowest() if event.number("seconds") >= _SHOWN_CALLS_SECONDS]
    if slow:
        print_text("")
        print_text(("slowest answers", "bold"))
    for event in slow:
        where, cause = explain_slow(event)[0], find_cause(story, event)
        head = f"{_clock(event.at)}  {seconds(event.number('seconds'))}  {event.text('model')} {event.text('revision')}"
        print_text((head, DOUBTFUL), f"  {where}")
        print_text((f"          likely: {cause}; request {event.text('request_id')}", DIM))


def _print_head(story: Story) -> None:
    if story.begins is None or story.ends is None:
        return
    lasted = seconds((story.ends - story.begins).total_seconds())
    others = f", {story.reading.others} of them no events" if story.reading.others else ""
    print_text((f"{story.begins:%Y-%m-%d %H:%M:%S} UTC, {lasted}, {story.reading.lines} lines{others}", DIM))
    calls = story.calls
    if calls.calls:
        failed = calls.calls - calls.codes["OK"]
        times = f"half within {seconds(calls.percentile(0.5))}, 99 % within {seconds(calls.percentile(0.99))}"
        print_text(f"{calls.calls} calls, ", (f"{failed} not answered", BAD if failed else GOOD), f", {times}")
        if calls.revisions:
            shares = ", ".join(f"{name} ({count})" for name, count in calls.revisions.items())
            print_text((f"answered by {shares}", DIM))
    print_text("")


def _print_episode(episode: Episode) -> None:
    lasted = f"  ({seconds(episode.seconds)})" if episode.seconds else ""
    times = f"  × {episode.times}" if episode.times > 1 else ""
    style = BAD if episode.is_bad else GOOD
    print_text((_clock(episode.begins), style), f"  {episode.title}{times}", (lasted, DIM))
    for detail in episode.details:
        print_text((f"          {detail}", DIM))
    if episode.action:
        print_text(("          → ", DOUBTFUL), episode.action)


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}"


def _to_json(story: Story) -> dict[str, object]:
    return {
        "lines": story.reading.lines,
        "other_lines": story.reading.others,
        "calls": story.calls.calls,
        "codes": dict(story.calls.codes),
        "seconds_p50": story.calls.percentile(0.5),
        "seconds_p99": story.calls.percentile(0.99),
        "revisions": dict(story.calls.revisions),
        "episodes": [
            {
                "at": episode.begins.isoformat(),
                "seconds": episode.seconds,
                "bad": episode.is_bad,
                "what": episode.title,
                "times": episode.times,
                "details": episode.details,
                "action": episode.action,
            }
            for episode in story.episodes
        ],
        "slowest": [
            {
                "seconds": event.number("seconds"),
                "request_id": event.text("request_id"),
                "where": explain_slow(event)[0],
            }
            for event in story.calls.slowest()
        ],
    }
