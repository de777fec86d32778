"""All models of the server: who is asked for by which name."""

from collections.abc import Mapping

from common.engine_files import Task
from common.errors import InputRefused, NotFound
from inference.server.model.commands import SlotCommands
from inference.server.model.manager import ModelManager


class Models:
    """The configured models, in the configuration's order."""

    def __init__(self, managers: list[ModelManager]) -> None:
        self._managers: Mapping[str, ModelManager] = {manager.kit.model: manager for manager in managers}
        self._commands = {manager.kit.model: SlotCommands(manager) for manager in managers}

    def all(self) -> list[ModelManager]:
        """Every model."""
        return list(self._managers.values())

    def of_task(self, task: Task) -> list[ModelManager]:
        """The models of one task."""
        return [manager for manager in self._managers.values() if manager.kit.task is task]

    def commands(self) -> list[SlotCommands]:
        """The commands of every model."""
        return list(self._commands.values())

    def commands_of(self, name: str) -> SlotCommands:
        """The commands of one model.

        Raises:
            NotFound: there is no such model.
        """
        self.named(name)
        return self._commands[name]

    def named(self, name: str) -> ModelManager:
        """One model by its name.

        Raises:
            NotFound: there is no such model.
        """
        manager = self._managers.get(name)
        if manager is None:
            raise NotFound(
                f"no model {name[:64]!r} here; there are {', '.join(self._managers)}",
                field="model",
                resource=("model", name[:128]),
            )
        return manager

    def for_call(self, name: str, task: Task) -> ModelManager:
        """The model that a caller means.

        Raises:
            NotFound: there is no such model of this task.
            InputRefused: none was named, and there are several.
        """
        if name:
            manager = self.named(name)
            if manager.kit.task is task:
                return manager
            raise NotFound(
                f"model {name[:64]!r} has another task: {manager.kit.task}",
                field="model",
                resource=("model", name[:128]),
            )
        of_task = self.of_task(task)
        if len(of_task) == 1:
            return of_task[0]
        if not of_task:
            raise NotFound(f"no model of task {task.value!r} is served here", field="model", resource=("model", ""))
        names = ", ".join(manager.kit.model for manager in of_task)
        raise InputRefused(f"several models are served; name one of {names}", reason="MODEL_REQUIRED", field="model")
