"""The real server under test: a server with its runners in a folder of its own, and what a test does to it."""

from tests.stack.answers import Answers, Question, question
from tests.stack.hand import Hand
from tests.stack.load import Load, LoadReport
from tests.stack.process import ServerProcess
from tests.stack.refusal import Refusal, refusal_of, status_refusal
from tests.stack.stack import Stack
from tests.stack.waiting import eventually

__all__ = [
    "Answers",
    "Hand",
    "Load",
    "LoadReport",
    "Question",
    "Refusal",
    "ServerProcess",
    "Stack",
    "eventually",
    "question",
    "refusal_of",
    "status_refusal",
]
