"""The real stack for tests, benchmarks, chaos steps and the demo: starts it, loads it, injects faults, reads it."""

from dev.harness.answers import Answers, Question, question
from dev.harness.control import ControlClient
from dev.harness.load import Load, LoadReport
from dev.harness.process import ServerProcess
from dev.harness.stack import Stack
from dev.harness.waiting import eventually

__all__ = [
    "Answers",
    "ControlClient",
    "Load",
    "LoadReport",
    "Question",
    "ServerProcess",
    "Stack",
    "eventually",
    "question",
]
