"""What all processes read of `hotslot.toml`: the loader, and the parts they share.

One file holds every process's section; the environment overrides it (`HOTSLOT_SERVER__PORT=50052`
is `[server] port`). A process declares its own sections in a subclass of `SettingsFile`; the whole
file is checked at once, and every mistake is reported with its key.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from common.engine_files import Task

ENV_PREFIX = "HOTSLOT_"
CONFIG_VARIABLE = "HOTSLOT_CONFIG"
DEFAULT_FILE = Path("hotslot.toml")
DEFAULT_STATE_DIR = Path("state")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 50051  # of the gRPC server
_ANY_HOSTS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104  compared with, not bound
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,3})?)$"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in the settings."""

    key: str  # for example "server.port"
    message: str  # what is allowed
    found: str = ""  # as it was written; empty if it was no plain value


class SettingsInvalid(ValueError):
    """The settings cannot be used; lists every mistake."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(map(format_mistake, mistakes)))
        self.mistakes = mistakes


class Section(BaseModel):
    """A part of the file: frozen, and a key that it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Section):
    """One `[[models]]` table."""

    name: Annotated[str, Field(pattern=MODEL_NAME_PATTERN, description="name by which callers ask for the model")]
    task: Annotated[Task, Field(description="what the model does")] = Task.VISUAL_ENTAILMENT
    device: Annotated[str, Field(pattern=DEVICE_PATTERN, description="auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="what is computed in; auto: bfloat16 where the device multiplies in it, else float32"),
    ] = "auto"
    cpu_fallback: Annotated[
        Literal["allow", "forbid"], Field(description="whether the CPU may answer when the GPU is out of memory")
    ] = "allow"


class LogSettings(Section):
    """`[logs]`: one JSON line an event on standard output."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="lowest level written")] = "info"


class SettingsFile(BaseSettings):
    """The whole file; a process's subclass types the sections that it reads."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    state_dir: Annotated[Path, Field(description="folder of bundles, sockets, the committed pointer")] = (
        DEFAULT_STATE_DIR
    )
    node: Annotated[str, Field(max_length=253, description="name of this host in answers; default: its host name")] = ""
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1, max_length=8, description="what is served")]
    logs: LogSettings = LogSettings()
    server: Any = None
    runner: Any = None
    updater: Any = None
    watchdog: Any = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the file; nothing else is read."""
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=settings_path()))


T = TypeVar("T", bound=SettingsFile)


def format_mistake(mistake: Mistake) -> str:
    """One mistake in one line, for people."""
    return f"{mistake.key}: {mistake.message}" + (f" (found {mistake.found})" if mistake.found else "")


def inherit_environment(*names: str) -> dict[str, str]:
    """What a child process is given of this one's environment: these variables, or all of it if none is named."""
    return {name: value for name, value in os.environ.items() if not names or name in names}


def local_address(host: str, port: int) -> str:
    """Where a caller on this machine reaches what listens on a host and port."""
    return f"{_ANY_HOSTS.get(host, host)}:{port}"


def settings_path() -> Path:
    """The file that is read: `HOTSLOT_CONFIG`, or `hotslot.toml` in the working folder."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


def load_settings(kind: type[T]) -> T:
    """Read and check the settings of one process.

    Raises:
        SettingsInvalid: the file is missing or no TOML, or something in it or in the environment is
            not allowed; with all mistakes at once.
    """
    path = settings_path()
    if not path.is_file():
        raise SettingsInvalid([Mistake(str(path), f"no such file; name one with --config or {CONFIG_VARIABLE}")])
    try:
        loaded = kind()  # type: ignore[call-arg]  # the sources give the values
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid([Mistake(str(path), f"is no TOML: {error}")]) from error
    except ValidationError as error:
        raise SettingsInvalid(_without_echoes([_mistake(row) for row in error.errors()])) from error
    _check_names(loaded.models)
    return loaded


def use_settings_file(path: Path) -> None:
    """Make `path` the file that this process and its children read."""
    os.environ[CONFIG_VARIABLE] = str(path)


def _check_names(models: tuple[ModelSettings, ...]) -> None:
    seen: set[str] = set()
    for position, model in enumerate(models):
        if model.name in seen:
            raise SettingsInvalid([Mistake(f"models[{position}].name", f"{model.name!r} stands twice")])
        seen.add(model.name)


def _without_echoes(mistakes: list[Mistake]) -> list[Mistake]:
    """A list that lost its entries to their own mistakes is then too short as well: no second mistake."""
    keys = {mistake.key for mistake in mistakes}
    return [one for one in mistakes if not any(key.startswith(f"{one.key}[") for key in keys)]


def _mistake(row: Mapping[str, Any]) -> Mistake:
    key = ""
    for part in row["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    message = str(row["msg"])
    message = "unknown key" if row["type"] == "extra_forbidden" else message[0].lower() + message[1:]
    found = row.get("input")
    return Mistake(key, message, repr(found) if isinstance(found, str | int | float | bool) else "")
