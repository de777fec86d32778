"""KServe's own SDK works unchanged against hotslot, in a process with nothing of hotslot."""

import json
import struct
from pathlib import Path

import pytest

from dev.harness.foreign_client import KSERVE, run_program
from dev.harness.scripted_engine import expected_scores
from dev.harness.stack import Stack

PROGRAM = Path(__file__).with_name("program.py")
PICTURE, STATEMENTS = b"\x89PNG one", ("there is a person", "人がいる")  # as in the program


def single(number: float) -> float:
    """A number as FP32 has it."""
    (found,) = struct.unpack("<f", struct.pack("<f", number))
    return float(found)


@pytest.mark.timeout(600)  # the first run installs it
def test_kserves_grpc_client_works_unchanged(stack: Stack) -> None:
    """Health, inference by raw and typed contents, and errors with their codes."""
    found = json.loads(run_program(KSERVE, PROGRAM, stack.address, "shapes"))

    expected = [expected_scores("r1", PICTURE, text) for text in STATEMENTS]
    scores = [[single(one.yes), single(one.no), single(one.maybe)] for one in expected]
    labels = [one.label for one in expected]
    answer = {"id": "mine", "model": "shapes", "version": "r1", "scores": scores, "labels": labels}
    assert (found["raw"], found["typed"], found["columns"]) == (answer, answer, answer)
    assert found["only_labels"] == {"id": "", "model": "shapes", "version": "r1", "labels": labels}
    assert [found[name] for name in ("live", "ready", "model_ready", "unknown_model_ready")] == [
        True,
        True,
        True,
        False,
    ]
    refused = ("unknown_model", "unknown_version", "unknown_output", "missing", "mixed")
    assert {name: found[name][0].removeprefix("StatusCode.") for name in refused} == {
        "unknown_model": "NOT_FOUND",
        "unknown_version": "NOT_FOUND",
        "unknown_output": "INVALID_ARGUMENT",
        "missing": "INVALID_ARGUMENT",
        "mixed": "INVALID_ARGUMENT",
    }
    assert found["mixed"][1] == "raw_input_contents has 1 entries, inputs 2"
    assert found["text_only"] == "InferenceError"
