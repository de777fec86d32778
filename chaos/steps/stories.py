"""Random stories of the updater: the tests' own state machine, told far more often."""

import os
import re
import subprocess
import sys

from chaos.catalog import Findings, Task
from chaos.report import ROOT

STORIES = 10_000
TEST = "tests/updater/stories"
LAST_CHARS = 3000


def run(task: Task) -> Findings:
    """Tell them."""
    stories = task.count or STORIES
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST],
        cwd=ROOT,
        env={**os.environ, "HOTSLOT_TEST_STORIES": str(stories)},
        capture_output=True,
        text=True,
        check=False,
    )
    findings = Findings(count=stories)
    passed = re.search(r"(\d+) passed", done.stdout)
    findings.numbers["tests"] = int(passed[1]) if passed else 0
    findings.expect(so=done.returncode == 0 and passed is not None, otherwise=done.stdout[-LAST_CHARS:])
    return findings
