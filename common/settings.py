"""Loads `hotslot.toml`, and declares the settings that all processes share.

One file holds the settings of every process; the environment overrides it (`HOTSLOT_SERVER__PORT=50052` is
`[server] port`). A process declares its sections in a subclass of `SettingsFile`. The whole file is checked at once,
and all mistakes are reported together, each with its key.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from common.engine_files import Task
from common.tls import TlsFiles
from common.toml_text import TomlBroken, read_toml, shorten

ENV_PREFIX = "HOTSLOT_"
CONFIG_VARIABLE = "HOTSLOT_CONFIG"
STOP_SECONDS_VARIABLE = "HOTSLOT_STOP_SECONDS"
DEFAULT_FILE = Path("hotslot.toml")
DEFAULT_STATE_DIR = Path("state")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 50051  # the gRPC server's
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,3})?)$"
_MAX_SHOWN = 100  # characters of a key, of one of its parts, and of a value in a message
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong setting."""

    key: str  # for example "server.port"
    message: str  # what is allowed
    found: str = ""  # the value; empty if it is a table or a list


class SettingsInvalid(ValueError):
    """The settings are wrong; lists all mistakes."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(map(format_mistake, mistakes)))
        self.mistakes = mistakes


class Change(Enum):
    """What a change of a setting needs; a mark among its annotations, see `common/settings_change`."""

    AT_ONCE = "at once"
    MODELS = "models"  # the models that it concerns are replaced, while they serve
    RESTART = "restart"


class Section(BaseModel):
    """A section of the file; frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Section):
    """One `[[models]]` table."""

    name: Annotated[str, Field(pattern=MODEL_NAME_PATTERN, description="name of the model in requests")]
    task: Annotated[Task, Field(description="task of the model")] = Task.VISUAL_ENTAILMENT
    device: Annotated[
        str,
        Field(
            pattern=DEVICE_PATTERN,
            description="auto, cpu, cuda or cuda:N; auto: the GPU on which the models have planned the least memory, "
            "else the CPU",
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="number format; auto: bfloat16 if the device multiplies in it, else float32"),
    ] = "auto"
    cpu_fallback: Annotated[
        Literal["allow", "forbid"], Field(description="whether the model moves to the CPU if the GPU is out of memory")
    ] = "allow"


class LogSettings(Section):
    """`[logs]`: events as JSON lines on standard output."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="lowest level logged")] = "info"


class TlsSection(Section):
    """`[tls]`: the certificate of this host's listeners."""

    certificate_file: Annotated[
        Path | None,
        Field(
            description="PEM file with the certificate of the gRPC port, followed by those between it and its CA; read "
            "again when it changes. Unset: no TLS"
        ),
    ] = None
    key_file: Annotated[
        Path | None, Field(description="PEM file with the certificate's private key, without a password")
    ] = None
    client_ca_file: Annotated[
        Path | None,
        Field(
            description="PEM file with CA certificates; clients must show a certificate that one of them has signed. "
            "Unset: none is asked for"
        ),
    ] = None
    metrics: Annotated[
        bool, Field(description="whether /metrics of server and updater are served over TLS too, on the same terms")
    ] = False

    @model_validator(mode="after")
    def _check_files(self) -> "TlsSection":
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("needs certificate_file and key_file together")
        if self.certificate_file is None and (self.client_ca_file is not None or self.metrics):
            raise ValueError("client_ca_file and metrics need certificate_file and key_file")
        return self

    @property
    def files(self) -> TlsFiles | None:
        """The files of the gRPC port; None without TLS."""
        if self.certificate_file is None or self.key_file is None:
            return None
        return TlsFiles(self.certificate_file, self.key_file, self.client_ca_file)

    @property
    def metrics_files(self) -> TlsFiles | None:
        """The files of the metrics ports; None without TLS there."""
        return self.files if self.metrics else None


class TracesSection(Section):
    """`[traces]`: spans of calls and updates for an OpenTelemetry collector."""

    endpoint: Annotated[
        str,
        Field(
            pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$|^$",
            description="HOST:PORT of a collector that takes OTLP over gRPC; empty: no traces",
        ),
    ] = ""
    share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of calls that are recorded, of those whose caller sends no traceparent; with one, its "
            "sampled flag decides. Updates are always recorded",
        ),
    ] = 0.01
    ca_file: Annotated[Path | None, Field(description="CA certificates of the collector; unset: without TLS")] = None


class SettingsFile(BaseSettings):
    """The whole file; a process's subclass declares the sections that it reads."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    state_dir: Annotated[Path, Field(description="folder for bundles, sockets and the committed pointer")] = (
        DEFAULT_STATE_DIR
    )
    node: Annotated[str, Field(max_length=253, description="name of this host in answers; empty: its host name")] = ""
    models: Annotated[
        tuple[ModelSettings, ...], Change.MODELS, Field(min_length=1, max_length=8, description="the served models")
    ]
    logs: LogSettings = LogSettings()
    tls: TlsSection = TlsSection()
    traces: TracesSection = TracesSection()
    server: Any = None
    runner: Any = None
    health: Any = None
    scheduling: Any = None
    callers: Any = None
    updater: Any = None
    watchdog: Any = None
    console: Any = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the file; nothing else is read.

        Raises:
            SettingsInvalid: the file cannot be read.
        """
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, InitSettingsSource(settings_cls, read_settings_table(settings_path())))


T = TypeVar("T", bound=SettingsFile)


def format_mistake(mistake: Mistake) -> str:
    """One mistake as a line of text."""
    return f"{mistake.key}: {mistake.message}" + (f" (found {mistake.found})" if mistake.found else "")


def read_stop_seconds() -> float | None:
    """Seconds after which supervisord, which was told at its start, kills the server; None without supervisord."""
    try:
        return float(os.environ.get(STOP_SECONDS_VARIABLE, ""))
    except ValueError:
        return None


def inherit_environment(*names: str) -> dict[str, str]:
    """The named variables of this process's environment, or all if none is named; for a child process."""
    return {name: value for name, value in os.environ.items() if not names or name in names}


def settings_path() -> Path:
    """The path of the settings file: `HOTSLOT_CONFIG`, or `hotslot.toml` in the working folder."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


def load_settings(kind: type[T]) -> T:
    """Read and check the settings of one process.

    Raises:
        SettingsInvalid: the file cannot be read or is not TOML, or a value in it or in the environment is not allowed;
            has all mistakes.
    """
    try:
        loaded = kind()  # type: ignore[call-arg]  # the sources give the values
    except ValidationError as error:
        raise SettingsInvalid(list_mistakes(error)) from error
    except SettingsError as error:
        raise SettingsInvalid([_find_bad_variables(error)]) from error
    except RecursionError as error:
        message = "a table, a list or a variable is nested too deeply; remove the brackets"
        raise SettingsInvalid([Mistake(shorten(str(settings_path()), _MAX_SHOWN), message)]) from error
    _check_names(loaded.models)
    return loaded


def use_settings_file(path: Path) -> None:
    """Make this process and its children read `path`."""
    os.environ[CONFIG_VARIABLE] = str(path)


def silence_grpc_logs() -> None:
    """Keep gRPC's own log lines off standard error unless GRPC_VERBOSITY is set; must run before gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def read_settings_table(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        SettingsInvalid: it cannot be read or is not TOML.
    """
    try:
        return read_toml(path)
    except TomlBroken as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        step = f"; name one with --config or {CONFIG_VARIABLE}" if is_missing else ""
        raise SettingsInvalid([Mistake(shorten(str(path), _MAX_SHOWN), f"{error}{step}")]) from error


def list_mistakes(error: ValidationError) -> list[Mistake]:
    """The mistakes that pydantic has found, with the keys as in the file."""
    return _without_echoes([_mistake(row) for row in error.errors()])


def _check_names(models: tuple[ModelSettings, ...]) -> None:
    seen: set[str] = set()
    for position, model in enumerate(models):
        if model.name in seen:
            raise SettingsInvalid([Mistake(f"models[{position}].name", f"{model.name!r} appears twice")])
        seen.add(model.name)


def _without_echoes(mistakes: list[Mistake]) -> list[Mistake]:
    """The mistakes without those that only follow from another: a list is "too short" if its entries were rejected."""
    keys = {mistake.key for mistake in mistakes}
    return [one for one in mistakes if not any(key.startswith(f"{one.key}[") for key in keys)]


def _mistake(row: Mapping[str, Any]) -> Mistake:
    key = ""
    for part in row["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{_show(part)}" if key else _show(part)
    message = str(row["msg"])
    message = "unknown key" if row["type"] == "extra_forbidden" else message[0].lower() + message[1:]
    found = row.get("input")
    shown = _show(found, repr) if isinstance(found, str | int | float | bool) else ""
    return Mistake(shorten(key, _MAX_MESSAGE), shorten(message, _MAX_MESSAGE), shown)


def _show(value: object, form: Callable[[object], str] = str) -> str:
    """A value as text of a message, of a limited length."""
    try:
        return shorten(form(value), _MAX_SHOWN)
    except ValueError:  # Python does not write out such an integer
        return "a number with thousands of digits"


def _find_bad_variables(error: SettingsError) -> Mistake:
    """The variables that must be JSON and are not; pydantic names only the section."""
    section = re.search(r'field "(\w+)"', str(error))
    prefix = f"{ENV_PREFIX}{section[1] if section else ''}".upper()
    refused = error.__cause__.doc if isinstance(error.__cause__, json.JSONDecodeError) else None
    names = sorted(
        name for name, value in os.environ.items() if name.upper().split("__")[0] == prefix and refused in (None, value)
    )
    message = (
        f"not JSON; write a whole table or list as JSON, or set single keys, such as {ENV_PREFIX}SERVER__PORT=50052"
    )
    return Mistake(shorten(", ".join(names), _MAX_MESSAGE), message)
