"""All configured models, by name and by task."""

from collections.abc import Mapping

from common.engine_files import Task
from common.errors import NotFound
from inference.server.model.commands import SlotCommands
from inference.server.model.manager import ModelManager


class Models:
    """The served models, in the configuration's order. Changed on the loop thread; `all` may be called on any."""

    def __init__(self, managers: list[ModelManager]) -> None:
        self.leaving: tuple[ModelManager, ...] = ()  # are not found any more, and answer what they have accepted
        self._managers: Mapping[str, ModelManager]
        self.of_task: Mapping[Task, list[ModelManager]]  # the models of each task
        self._commands: Mapping[str, SlotCommands] = {}
        self.serve(managers)

    def serve(self, managers: list[ModelManager]) -> None:
        """Serve exactly these models from now on."""
        known = {id(one.manager): one for one in self._commands.values()}
        self._commands = {one.options.model: known.get(id(one)) or SlotCommands(one) for one in managers}
        self.of_task = {task: [one for one in managers if one.options.task is task] for task in Task}
        self._managers = {manager.options.model: manager for manager in managers}

    def all(self) -> list[ModelManager]:
        """All models."""
        return list(self._managers.values())

    def list_holding(self, task: Task) -> list[ModelManager]:
        """The models of one task that may hold a request: also those that are leaving."""
        return [*self.of_task[task], *(one for one in self.leaving if one.options.task is task)]

    def commands(self) -> list[SlotCommands]:
        """The commands of every model."""
        return list(self._commands.values())

    def get_commands(self, name: str) -> SlotCommands:
        """The commands of one model.

        Raises:
            NotFound: there is no such model.
        """
        self.get(name)
        return self._commands[name]

    def get(self, name: str) -> ModelManager:
        """The model of this name.

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
