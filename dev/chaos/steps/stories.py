"""Random sequences of events for the updater: the tests' state machine with other seeds and many more runs."""

import os
import random
import re
import subprocess
import sys

from dev.chaos.catalog import Findings, Task
from dev.chaos.report import ROOT

STORIES = 10_000
AT_ONCE = 500  # of one process: Hypothesis slows down with the number of its stories
TEST = "tests/updater/stories"
LAST_CHARS = 12_000  # of the output of a failure


def run(task: Task, test: str = TEST) -> Findings:
    """Run the stories of a test, until one fails."""
    findings = Findings()
    chance, wanted = random.Random(task.seed), task.count or STORIES
    while findings.count < wanted and not findings.troubles:
        stories, seed = min(AT_ONCE, wanted - findings.count), chance.randrange(1 << 32)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", test],
            cwd=ROOT,
            env={**os.environ, "HOTSLOT_TEST_STORIES": str(stories)},
            capture_output=True,
            text=True,
            check=False,
        )
        is_good = done.returncode == 0 and re.search(r"[1-9]\d* passed", done.stdout) is not None
        findings.expect(so=is_good, otherwise=f"--hypothesis-seed={seed}: {done.stdout[-LAST_CHARS:]}")
        findings.count += stories if is_good else 0
        task.say(f"{findings.count} of {wanted} stories")
    return findings
