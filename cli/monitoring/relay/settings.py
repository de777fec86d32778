"""The settings of `hotslot alert-relay`: a file of its own, since it runs where Alertmanager does."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from common.settings import Section, SettingsInvalid, list_mistakes, read_settings_table

MAX_TARGETS = 16


class TargetKind(StrEnum):
    """The protocol of a target."""

    WECOM = "wecom"  # 企业微信群机器人
    DINGTALK = "dingtalk"  # 钉钉自定义机器人
    FEISHU = "feishu"  # 飞书自定义机器人
    WEBHOOK = "webhook"  # hotslot's own JSON


class TargetSection(Section):
    """`[[targets]]`: one chat or receiver."""

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="name in logs, metrics and its path /alerts/NAME"),
    ]
    kind: Annotated[TargetKind, Field(description="what it speaks")]
    url_file: Annotated[
        Path,
        Field(description="file with its URL; a robot's has its key in it. Read for each message"),
    ]
    secret_file: Annotated[
        Path | None, Field(description="file with the secret of signed messages, of DingTalk and Feishu")
    ] = None
    token_file: Annotated[Path | None, Field(description="file with a bearer token for a plain webhook")] = None
    messages_a_minute: Annotated[
        int, Field(ge=1, le=6000, description="most messages a minute; what waits meanwhile is joined in one message")
    ] = 18
    timeout_seconds: Annotated[float, Field(ge=0.1, le=60, description="time limit of one delivery")] = 10.0
    max_waiting: Annotated[
        int, Field(ge=1, le=100_000, description="most notifications that wait; then Alertmanager gets 503 and repeats")
    ] = 1000


class RelaySettings(Section):
    """The whole file."""

    host: Annotated[str, Field(min_length=1, max_length=253, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port of /alerts/NAME and /metrics; 0 = any free")] = 9097
    queue_dir: Annotated[Path, Field(description="folder of notifications that wait; kept over restarts")] = Path(
        "alert-relay"
    )
    token_file: Annotated[
        Path | None, Field(description="file with a bearer token that Alertmanager must send; unset: none is asked for")
    ] = None
    targets: Annotated[tuple[TargetSection, ...], Field(min_length=1, max_length=MAX_TARGETS, description="receivers")]

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, value: tuple[TargetSection, ...]) -> tuple[TargetSection, ...]:
        names = [target.name for target in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two targets are named {twice!r}")
        signed = (TargetKind.DINGTALK, TargetKind.FEISHU)
        for target in value:
            if target.secret_file is not None and target.kind not in signed:
                raise ValueError(f"{target.name}: secret_file is for dingtalk and feishu")
            if target.token_file is not None and target.kind is not TargetKind.WEBHOOK:
                raise ValueError(f"{target.name}: token_file is for webhook")
        return value


def load_relay_settings(path: Path) -> RelaySettings:
    """Read and check the file.

    Raises:
        SettingsInvalid: has all mistakes.
    """
    try:
        return RelaySettings.model_validate(read_settings_table(path))
    except ValidationError as error:
        raise SettingsInvalid(list_mistakes(error)) from error
