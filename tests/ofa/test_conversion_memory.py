"""The memory of a conversion: planned before it begins, and given up first when it runs out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.sealing import ConvertLimits
from common.source import ConversionRefused
from inference.runner.conversion.memory_plan import check_memory, estimate_bytes
from inference.runner.conversion.tensor_location import TensorLocation
from updater.core.effects import EffectFailure, FailureKind, Shortage
from updater.core.ports import EffectFailed
from updater.store.bundles import ChildConverter

MIB = 1 << 20
SMALL = TensorLocation(Path("weights"), 0, "float32", (64, 64), (0, 1))
LARGE = replace(SMALL, dtype="float16", shape=(59457, 1024))  # the word table of the large model
# The program as it is, but for the memory that is free, which it prints with its OOM score.
PROGRAM = """
import sys
from pathlib import Path
from inference.runner import convert

convert.read_available_bytes = lambda: 100 << 20
code = convert.main(sys.argv[1:])
print(Path("/proc/self/oom_score_adj").read_text().strip(), "torch" in sys.modules)
sys.exit(code)
"""


@pytest.mark.fault("L14")
def test_the_largest_tensor_decides() -> None:
    """One tensor is in memory at a time, in float32, however many there are and however they are stored."""
    assert estimate_bytes([SMALL] * 1000) == estimate_bytes([SMALL])
    assert estimate_bytes([SMALL, LARGE]) == estimate_bytes([replace(LARGE, dtype="float32")])
    assert estimate_bytes([LARGE]) > estimate_bytes([SMALL]) + 232 * MIB


@pytest.mark.fault("L14")
def test_a_conversion_begins_only_if_it_fits() -> None:
    """Both numbers are in the refusal; unknown free memory refuses nothing."""
    needed = estimate_bytes([SMALL])
    check_memory([SMALL], needed)
    check_memory([SMALL], None)
    with pytest.raises(ConversionRefused, match=r"needs about \d+ MiB of memory; 99 MiB are free") as caught:
        check_memory([SMALL], 99 * MIB)

    assert (caught.value.reason, caught.value.needed_bytes, caught.value.free_bytes) == (
        "DOES_NOT_FIT",
        needed,
        99 * MIB,
    )


@pytest.mark.fault("L14")
def test_a_child_without_room_says_so_and_dies_first(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """It is refused before torch is imported; meanwhile the kernel would end it before any other process."""
    command = [sys.executable, "-P", "-c", PROGRAM, "--source", str(sources("plain")), "--into", str(tmp_path)]
    command += ["--engine", "ofa", "--revision", "r", "--parent", str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)

    assert json.loads(done.stderr)["reason"] == "DOES_NOT_FIT"
    assert json.loads(done.stderr)["free_bytes"] == 100 * MIB
    assert done.stdout.split() == ["1000", "False"]


@pytest.mark.fault("L14")
def test_the_updater_gets_the_numbers(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """A conversion without room is not the revision's fault."""

    def refuse(*_arguments: object, **_named: object) -> None:
        raise ConversionRefused("DOES_NOT_FIT", "no room", 400, 100)

    converter = ChildConverter(tmp_path, ConvertLimits(), lambda: None, refuse)  # type: ignore[arg-type]
    with pytest.raises(EffectFailed) as caught:
        converter.seal(sources("plain"), "r", "float32", 60.0, None)

    shortage = Shortage("", 400, 100)
    assert caught.value.failure == EffectFailure(FailureKind.TRANSIENT, "DOES_NOT_FIT", "no room", shortage=shortage)
