"""Which names the health service reports as ready: the models, the services, the whole server."""

from collections.abc import Sequence

from common.logs import Logger
from common.paths import LIVENESS
from inference.server.api import status
from inference.server.api.tasks import TASK_APIS
from inference.server.health import HealthRegistry, Overall
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.scheduling.admission import Drain

PUBLIC_SERVICES = (*(api.service for api in TASK_APIS.values()), status.SERVICE)  # always served


class Readiness:
    """Keeps the health of a server's names up to date, and logs its changes."""

    def __init__(
        self, models: Models, drain: Drain, overall: Overall, log: Logger, of_all_models: Sequence[str] = ()
    ) -> None:
        """Report nothing as ready yet.

        Args:
            models: served now.
            drain: of the server.
            overall: how many models must be ready.
            log: gets the changes.
            of_all_models: further services, which are ready when the whole server is.
        """
        self.overall = overall  # may be replaced
        names = [*of_all_models, *(one.options.model for one in models.all())]
        self.health = HealthRegistry(["", LIVENESS, *PUBLIC_SERVICES, *names])
        self._of_all_models = of_all_models
        self._models, self._drain, self._log = models, drain, log
        self._given_up: set[str] = set()  # models

    def update(self) -> None:
        """Update the readiness of each model, each service, and of the whole server."""
        is_leaving, overall = self._drain.is_leaving, self.overall
        managers = self._models.all()
        ready = {manager.options.model: manager.is_ready and not is_leaving for manager in managers}
        of_tasks = {
            api.service: overall.combine(ready[one.options.model] for one in self._models.of_task[task])
            for task, api in TASK_APIS.items()
        }
        is_ready = overall.combine(ready.values())
        states = {
            **ready,
            **dict.fromkeys(("", *self._of_all_models), is_ready),
            **of_tasks,
            status.SERVICE: not is_leaving,
            LIVENESS: True,  # answered at all: a restart of the server would not repair a model
        }
        for name, state in self.health.update(states):
            self._log.info("health_changed", service=name, serving=state)
        self._log_given_up(managers)

    def _log_given_up(self, managers: list[ModelManager]) -> None:
        """Log the models that have given up since the last call, and those that have recovered."""
        given_up = {manager.options.model for manager in managers if manager.has_given_up}
        for manager in managers:
            model, active = manager.options.model, manager.pair.active_slot
            if model in given_up - self._given_up and active is not None:
                self._log.error("model_given_up", model=model, failures=active.failures, detail=active.last_failure)
            elif model in self._given_up - given_up:
                self._log.info("model_recovered", model=model)
        self._given_up = given_up
