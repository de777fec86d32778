"""The real server under test: a front with its runners in a folder of its own, and what a test does to it."""

from tests.stack.answers import Answers, Question, question
from tests.stack.hand import Hand
from tests.stack.load import Load, LoadReport
from tests.stack.process import FrontProcess
from tests.stack.refusal import Refusal, refusal_of, status_refusal
from tests.stack.stack import Stack
from tests.stack.waiting import eventually

__all__ = [
    "Answers",
    "FrontProcess",
    "Hand",
    "Load",
    "LoadReport",
    "Question",
    "Refusal",
    "Stack",
    "eventually",
    "question",
    "refusal_of",
    "status_refusal",
]
