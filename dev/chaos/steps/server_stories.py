"""Random sequences of events for a model of the server: the tests' state machine, other seeds and many more runs."""

from dev.chaos.catalog import Findings, Task
from dev.chaos.steps import stories

TEST = "tests/server/test_server_stories.py"


def run(task: Task) -> Findings:
    """Run the stories, until one fails."""
    return stories.run(task, TEST)
