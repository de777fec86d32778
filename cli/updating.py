"""Where the updater and what it works on are found: its socket, the hub's folder, the golden sets."""

from pathlib import Path

from cli.problems import WronglyUsed
from cli.settings import Settings, read_settings, state_folder
from common.engine_files import Task
from common.paths import UPDATES_SOCKET, run_folder
from common.settings import settings_path
from updater.settings import ModelUpdatesSection


def updates_address(state_dir: Path | None) -> str:
    """The updater's own socket."""
    return f"unix://{run_folder(state_folder(state_dir)) / UPDATES_SOCKET}"


def hub_folder(given: Path | None, model: str = "") -> Path:
    """The folder hub: as given, or as the settings name it for a model.

    Raises:
        WronglyUsed: nothing names one.
    """
    if given is not None:
        return given
    section = _section(model, "--hub")
    if section.hub_folder is None:
        raise WronglyUsed(f"its revisions come from {section.hub_model}, which is no folder; give --hub DIR")
    return section.hub_folder


def golden_folder(given: Path | None, model: str) -> Path:
    """The golden set: as given, or as the settings name it for a model.

    Raises:
        WronglyUsed: nothing names one.
    """
    if given is not None:
        return given
    found = _section(model, "a folder").golden
    if found is None:
        raise WronglyUsed(
            'the settings name no golden set; make one with `hotslot golden record FOLDER`, then golden = "…"'
        )
    return found


def task_of(model: str) -> Task:
    """The task of a model; without settings, the only one that this build serves."""
    if not settings_path().is_file():
        return Task.VISUAL_ENTAILMENT
    found = {one.name: one.task for one in read_settings().models}
    return found.get(model, next(iter(found.values())))


def _section(model: str, instead: str) -> ModelUpdatesSection:
    settings: Settings | None = read_settings() if settings_path().is_file() else None
    sections = settings.updater.models if settings is not None else {}
    if model:
        sections = {name: section for name, section in sections.items() if name == model}
    if len(sections) != 1:
        known = ", ".join(sections) or "none"
        raise WronglyUsed(f"[updater.models] has {known}; name a model with --model, or give {instead}")
    return next(iter(sections.values()))
