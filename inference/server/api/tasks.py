"""The tasks that the server answers: one row each."""

from collections.abc import Mapping
from typing import Final

from common.engine_files import Task
from inference.server.api.address import ADDRESS
from inference.server.api.entailment import ENTAILMENT
from inference.server.api.task import TaskApi

TASK_APIS: Final[Mapping[Task, TaskApi]] = {api.task: api for api in (ENTAILMENT, ADDRESS)}
