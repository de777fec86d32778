"""Runs rows of the conformance table with the Python client: JSON lines in, JSON lines out.

clients/conformance/README.md describes them.
"""

import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hotslot_client import (
    AddressItem,
    Cancelled,
    Client,
    ClientClosed,
    EntailmentItem,
    HotslotError,
    Prediction,
    StreamRules,
    Tagging,
    Tls,
)

LANGUAGE = "python"
Json = dict[str, Any]
Item = EntailmentItem | AddressItem
_printing = threading.Lock()


def main() -> None:
    """Read commands until the end of the input."""
    running: Load | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if "row" in command:
            run_row(command)
        elif "load" in command:
            running = Load(command)
        elif "stop" in command and running is not None:
            emit({"load": running.stop()})


def emit(line: Json) -> None:
    """Print a line at once."""
    with _printing:
        print(json.dumps(line, ensure_ascii=False), flush=True)


def open_client(endpoint: Json, *, retries: bool = True) -> Client:
    """A client of an endpoint."""
    tls: Tls | bool = False
    if "ca_file" in endpoint:
        ca, certificate, key = (
            Path(endpoint[name]) if name in endpoint else None for name in ("ca_file", "certificate_file", "key_file")
        )
        tls = Tls(ca, certificate, key)
    token = Path(endpoint["token_file"]).read_text().strip() if "token_file" in endpoint else ""
    return Client(endpoint["address"], tls=tls, token=token, retries=retries)


def run_row(command: Json) -> None:
    """Make the call of a row and print what was seen."""
    row, began = command["row"], time.monotonic()
    pictures = Path(command.get("pictures", "."))
    with open_client(command["endpoint"], retries=row.get("retry", True)) as client:
        if "cancel_after_seconds" in row:
            threading.Timer(row["cancel_after_seconds"], client.close).start()
        seen = run_stream(client, row, pictures) if row["call"] == "stream" else run_unary(client, row, pictures)
    seconds = time.monotonic() - began
    passed = matches(expand(row), seen, seconds)
    emit({"row": row["id"], "language": LANGUAGE, "passed": passed, "seen": seen, "seconds": round(seconds, 3)})


def make_item(task: str, request: Json, pictures: Path, key: object = None) -> Item:
    """A request of the table as an item."""
    model = request.get("model", "")
    if task == "address":
        return AddressItem(request.get("addresses", []), model, key)
    content = request.get("picture_text", "").encode()
    if request.get("picture"):
        content = (pictures / request["picture"]).read_bytes()
    content += bytes(request.get("padding", 0))
    return EntailmentItem(content, request.get("statements", []), request.get("premise", ""), model, key)


def run_unary(client: Client, row: Json, pictures: Path) -> Json:
    """What a unary call shows."""
    item = make_item(row["task"], row["request"], pictures)
    if "report_at" in row:
        threading.Timer(0.05, emit, [{"row": row["id"], "reached": 0}]).start()
    options: Json = {"model": item.model, "timeout": row.get("deadline_seconds"), **tags_of(row)}
    try:
        if isinstance(item, AddressItem):
            return show_answer(client.tag(item.addresses, **options))
        return show_answer(client.predict(item.picture, item.statements, premise=item.premise, **options))
    except HotslotError as error:
        return show_error(error)


def tags_of(row: Json) -> Json:
    """What a call says beside its requests."""
    return {name: row[name] for name in ("model_version", "routing_key") if name in row}


def run_stream(client: Client, row: Json, pictures: Path) -> Json:
    """What a stream shows."""
    given = [make_item(row["task"], request, pictures) for request in row["items"]] * row.get("repeat", 1)
    results: list[Json | None] = [None] * len(given)
    arrived, duplicated = 0, 0
    failure: Json | None = None
    if row.get("report_at") == 0:
        emit({"row": row["id"], "reached": 0})
    try:
        for outcome in outcomes_of(client, row, given):
            duplicated += results[outcome.index] is not None
            error = outcome.error
            results[outcome.index] = show_error(error) if error is not None else show_answer(outcome.answer)
            arrived += 1
            if arrived == row.get("report_at"):
                emit({"row": row["id"], "reached": arrived})
    except HotslotError as error:
        failure = show_error(error)
    found: Json = {"results": results, "duplicated": duplicated, "missing": results.count(None)}
    return {"outcome": "ended", **found} if failure is None else {**failure, **found}


def outcomes_of(client: Client, row: Json, given: list[Item]) -> Iterator[Any]:
    """The outcomes of a stream of either task."""
    many: Callable[..., Iterator[Any]] = client.tag_many if row["task"] == "address" else client.predict_many
    options: Json = {"ordered": row.get("order", "caller") == "caller", "timeout": row.get("deadline_seconds")}
    options |= tags_of(row)
    if "window" in row:
        options["window"] = row["window"]
    return many(given, **options)


def show_answer(answer: Any) -> Json:  # noqa: ANN401  of either task
    """An answer as the table writes it."""
    assert isinstance(answer, Prediction | Tagging)
    if isinstance(answer, Prediction):
        labels = [str(label) for label in answer.labels]
    else:
        labels = ["|".join(f"{span.kind}={span.text}" for span in result.spans) for result in answer.results]
    by = answer.served_by
    return {"outcome": "answer", "labels": labels, "model": by.model, "revision": by.revision}


def show_error(error: Exception) -> Json:
    """An error as the table writes it."""
    if not isinstance(error, HotslotError):
        return {"outcome": "error", "code": type(error).__name__}
    hint = error.retry_after_seconds is not None
    code = "CANCELLED" if isinstance(error, ClientClosed | Cancelled) else error.code
    return {"outcome": "error", "code": code, "reason": error.reason, "field": error.field, "retry_hint": hint}


def expand(row: Json) -> Json:
    """What is expected, with the results of every repetition."""
    expected = dict(row["expected"])
    if "results" in expected:
        expected["results"] = expected["results"] * row.get("repeat", 1)
    return expected


def matches(expected: Json, seen: Json, seconds: float) -> bool:
    """Whether all that is expected was seen."""
    if not expected.get("min_seconds", 0) <= seconds <= expected.get("max_seconds", float("inf")):
        return False
    rest = {key: value for key, value in expected.items() if key not in ("min_seconds", "max_seconds")}
    return all(_is_same(value, seen.get(key)) for key, value in rest.items())


def _is_same(expected: Any, seen: Any) -> bool:  # noqa: ANN401  JSON
    if isinstance(expected, dict):
        return isinstance(seen, dict) and all(_is_same(value, seen.get(key)) for key, value in expected.items())
    if isinstance(expected, list) and expected and isinstance(expected[0], dict):
        return isinstance(seen, list) and len(seen) == len(expected) and all(map(_is_same, expected, seen))
    return bool(expected == seen)


class Load:
    """Callers that go on until they are told to stop."""

    def __init__(self, command: Json) -> None:
        self._load = command["load"]
        pictures = Path(command.get("pictures", "."))
        self._items = [make_item(self._load["task"], one, pictures) for one in self._load["requests"]]
        self._client = open_client(command["endpoint"])
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._revisions: Counter[str] = Counter()
        self._longest = 0.0
        self._begun: set[int] = set()
        callers, streams = self._load["unary_callers"], self._load["streams"]
        self._size = callers + streams
        targets = [self._call] * callers + [self._stream] * streams
        self._threads = [threading.Thread(target=target, args=(number,)) for number, target in enumerate(targets)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Json:
        """Make no new calls, wait for all outcomes; the counts."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        names = ("calls", "failed", "items", "failed_items", "duplicated", "missing")
        counts: Json = {name: self._counts[name] for name in names}
        found = {"failures": dict(self._failures), "revisions": dict(self._revisions)}
        return {**counts, **found, "longest_seconds": round(self._longest, 3)}

    def _call(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._stopped.is_set():
                return
            item, began = self._items[turn % len(self._items)], time.monotonic()
            answer: Prediction | Tagging | None = None
            error: Exception | None = None
            try:
                answer = self._ask(item)
            except HotslotError as failure:
                error = failure
            with self._lock:
                self._counts["calls"] += 1
                self._counts["failed"] += error is not None
                self._longest = max(self._longest, time.monotonic() - began)
                self._note(number, answer, error)

    def _ask(self, item: Item) -> Prediction | Tagging:
        if isinstance(item, AddressItem):
            return self._client.tag(item.addresses, model=item.model)
        return self._client.predict(item.picture, item.statements, premise=item.premise, model=item.model)

    def _stream(self, number: int) -> None:
        taken = itertools.count()
        seen: set[int] = set()

        def source() -> Iterator[Item]:
            while not self._stopped.is_set():
                yield self._items[next(taken) % len(self._items)]

        many: Callable[..., Iterator[Any]] = self._client.predict_many
        if self._load["task"] == "address":
            many = self._client.tag_many
        failure: Exception | None = None
        try:
            for outcome in many(source(), ordered=False, window=self._load["window"], rules=StreamRules()):
                with self._lock:
                    self._counts["duplicated"] += outcome.index in seen
                    self._counts["failed_items"] += outcome.error is not None
                    self._note(number, outcome.answer, outcome.error)
                seen.add(outcome.index)
        except HotslotError as error:
            failure = error
        with self._lock:
            items = next(taken)
            self._counts["items"] += items
            self._counts["missing"] += items - len(seen)
            if failure is not None:
                self._note(number, None, failure)

    def _note(self, number: int, answer: Prediction | Tagging | None, error: Exception | None) -> None:
        if answer is not None:
            self._revisions[answer.served_by.revision] += 1
            if number not in self._begun:
                self._begun.add(number)
                if len(self._begun) == self._size:
                    emit({"load": "begun"})
        elif isinstance(error, HotslotError):
            self._failures[f"{error.code} {error.reason}".strip()] += 1


if __name__ == "__main__":
    main()
