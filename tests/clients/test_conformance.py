"""The conformance table is whole, and a part of it passes with the Python client on a real server."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dev.conformance.__main__ import read_table, run_table
from dev.conformance.ghz import name_code
from dev.conformance.report import Result
from dev.conformance.runner import LANGUAGES
from dev.conformance.situations import PICTURES, SALT, Servers
from dev.harness.scripted_engine import expected_scores
from dev.harness.scripted_tagging import tag
from dev.harness.stack import Stack

SHORT = ["one-statement", "empty-statement", "many-addresses", "version-", "entailment-stream-of-500", "past-deadline"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Those of all languages."""
    with Servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


def labels(request: dict[str, Any]) -> Sequence[str]:
    """What the scripted engine answers to a request."""
    if "addresses" in request:
        return [
            "|".join(f"{part.kind}={one[part.start : part.end]}" for part in tag(one)) for one in request["addresses"]
        ]
    content = request.get("picture_text", "").encode()
    if "picture" in request:
        content = (PICTURES / request["picture"]).read_bytes()
    content += bytes(request.get("padding", 0))
    premise = request.get("premise", "")
    return [expected_scores(SALT, content, statement, premise).label for statement in request["statements"]]


def test_the_table_expects_what_the_engine_answers() -> None:
    """Names are unique; a stream expects one result an item."""
    rows = read_table()

    assert len({row["id"] for row in rows}) == len(rows)
    assert len(rows) >= 100
    for row in rows:
        requests = [row["request"]] if row["call"] == "unary" else row["items"]
        expected = [row["expected"]] if row["call"] == "unary" else row["expected"].get("results", [])
        assert len(expected) in (len(requests), 0), row["id"]
        for request, one in zip(requests, expected, strict=False):
            assert one.get("labels", labels(request) if one["outcome"] == "answer" else None) == (
                labels(request) if one["outcome"] == "answer" else None
            ), row["id"]


def test_a_result_is_good_only_if_it_is_what_was_expected() -> None:
    """Whatever the runner says of itself."""
    row = {"id": "a", "repeat": 2, "expected": {"outcome": "ended", "results": [{"labels": ["yes"]}], "max_seconds": 1}}
    seen = {"outcome": "ended", "results": [{"labels": ["yes"], "model": "m"}] * 2}

    def is_good(**changed: Any) -> bool:  # noqa: ANN401
        return Result(row, "x", {"passed": True, "seen": seen, "seconds": 0.1, **changed}, 0.1).is_good

    assert is_good()
    assert not is_good(passed=False)
    assert not is_good(seconds=2)
    assert not is_good(seen={**seen, "results": seen["results"][:1]})
    assert not is_good(seen={**seen, "results": [{"labels": ["no"]}] * 2})


@pytest.mark.timeout(600)  # the first build of a client downloads gRPC
@pytest.mark.parametrize("language", [name for name, one in LANGUAGES.items() if one.is_client])
def test_a_part_of_the_table_passes(language: str, servers: Servers) -> None:
    """In each language that this machine can build; `make conformance` runs all rows."""
    if missing := LANGUAGES[language].missing:
        pytest.skip(f"there is no {' and no '.join(missing)} on the path: the {language} client has run no row")
    results = run_table([language], read_table(SHORT), servers)

    assert len(results) >= 8
    assert [result.describe() for result in results if not result.is_good] == []


def test_no_server_is_left_when_a_start_fails(tmp_path: Path) -> None:
    """The failure is raised, and the processes have ended."""

    class Refusing(Stack):
        def wait_ready(self) -> None:
            raise RuntimeError("not today")

    stack = Refusing(tmp_path)
    with pytest.raises(RuntimeError, match="not today"), stack:
        raise AssertionError("it has started")

    assert stack.process.living() == []


def test_a_tool_that_shows_codes_is_compared_by_them() -> None:
    """What it cannot show is not held against it; what it shows is."""
    row = {"id": "a", "expected": {"outcome": "error", "code": "NOT_FOUND", "reason": "MODEL_UNKNOWN"}}
    line = {"passed": True, "shows": ["outcome", "code"], "seen": {"outcome": "error", "code": "NOT_FOUND"}}

    assert Result(row, "ghz", line, 0.1).is_good
    assert not Result(row, "ghz", {**line, "seen": {"outcome": "error", "code": "INTERNAL"}}, 0.1).is_good
    assert not Result(row, "go", {**line, "shows": ["outcome", "code", "reason"]}, 0.1).is_good
    assert [name_code(name) for name in ("OK", "Canceled", "DeadlineExceeded")] == [
        "OK",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
    ]
