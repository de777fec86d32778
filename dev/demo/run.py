"""The state of one run of the demo."""

import time
from dataclasses import dataclass, field

from rich.console import Console

from dev.demo.follow import Followed, Operator
from dev.demo.stack import DemoStack
from dev.harness.control import ControlClient
from dev.harness.load import Load


@dataclass(slots=True)
class DemoRun:
    """The stack, its clients, and what the scenes found."""

    demo: DemoStack
    operator: Operator
    control: ControlClient
    load: Load
    console: Console
    began: float
    updates: dict[str, Followed] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    by_previous: int = 0  # answers that the previous slot gave for a trial
    killed_at: float = 0.0  # when the runner was killed, time.monotonic()
    back_at: float = 0.0  # when the model was ready again

    def say(self, sentence: str) -> None:
        """Print a line with the time since the demo began."""
        since = f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]"
        self.console.print(f"{since}  {sentence}", highlight=False, soft_wrap=True)

    def expect(self, *, so: bool, otherwise: str) -> None:
        """Record `otherwise` as a failure unless `so` is true."""
        if not so:
            self.troubles.append(otherwise)
            self.say(f"[red]{otherwise}[/red]")
