"""Random stories of one model of the server: the state machine of the tests, with other seeds and far more stories."""

from dev.chaos.catalog import Findings, Task
from dev.chaos.steps import stories

TEST = "tests/server/test_server_stories.py"


def run(task: Task) -> Findings:
    """Run the stories, until one fails."""
    return stories.run(task, TEST)
