"""NVIDIA's `tritonclient[grpc]` works unchanged against hotslot, in a process with nothing of hotslot."""

import json
import struct

from dev.harness.foreign_client import TRITON, run_program
from dev.harness.process import ROOT
from dev.harness.scripted_engine import expected_scores
from dev.harness.stack import Stack

PROGRAM = ROOT / "tests" / "clients" / "triton_program.py"
PICTURE, STATEMENTS = b"\x89PNG one", ("there is a person", "人がいる")  # as in the program


def single(number: float) -> float:
    """A number as FP32 has it."""
    (found,) = struct.unpack("<f", struct.pack("<f", number))
    return float(found)


def test_tritonclient_works_unchanged(stack: Stack) -> None:
    """Health, metadata, inference by raw contents in flat and in column shape, and errors with their codes."""
    found = json.loads(run_program(TRITON, PROGRAM, stack.address, "shapes"))

    expected = [expected_scores("r1", PICTURE, text) for text in STATEMENTS]
    assert found["scores"] == [[single(one.yes), single(one.no), single(one.maybe)] for one in expected]
    assert (found["labels"], found["only_labels"]) == ([one.label for one in expected],) * 2
    assert (found["id"], found["version"], found["without_scores"]) == ("mine", "r1", True)
    assert (found["live"], found["ready"], found["model_ready"], found["other_version_ready"]) == (
        True,
        True,
        True,
        False,
    )
    assert found["unknown_model_ready"] is False
    assert (found["server"], found["metadata"]["versions"]) == ("hotslot", ["r1"])
    assert found["metadata"]["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": ["-1", "3"]},
        {"name": "labels", "datatype": "BYTES", "shape": ["-1"]},
    ]
    codes = {name: found[name][0] for name in ("unknown_model", "unknown_version", "missing")}
    assert codes == {
        "unknown_model": "StatusCode.NOT_FOUND",
        "unknown_version": "StatusCode.NOT_FOUND",
        "missing": "StatusCode.INVALID_ARGUMENT",
    }
    assert found["missing"][1] == "the input statements is required"
