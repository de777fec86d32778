"""Ordinary pictures that take long to decode, from many callers, on a device that is fast."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dev.harness.answers import question
from dev.harness.stack import Stack
from tests.pictures.files import draw, encode

CALLERS = 16


@pytest.mark.fault("L9")
def test_callers_with_pictures_of_phones_end_no_runner(tmp_path: Path) -> None:
    """Each is answered; preparation has a clock of its own, and the device's says nothing about it."""
    picture = encode(draw(4000, 3000), "JPEG", quality=90, progressive=True)
    runner = {"min_timeout_seconds": 0.3, "prepare_processes": 1}
    with Stack(tmp_path, runner=runner, script={"picture_side": 480}) as stack:
        pid = stack.control.active_pid()
        with ThreadPoolExecutor(CALLERS) as callers:
            asked = [question(f"a dog {number}", image=picture) for number in range(CALLERS)]
            answers = list(callers.map(lambda one: stack.predict(one, timeout=60.0), asked))

        assert all(answer.timing.prepared.ToTimedelta().total_seconds() > 0 for answer in answers)
        assert stack.control.active_pid() == pid
        assert sum(slot.restarts for slot in stack.control.status().slots) == 0
