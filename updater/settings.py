"""The updater's sections of `hotslot.toml`: `[updater]`, `[updater.models.NAME]`, `[[updater.webhooks]]`."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from common.address import Host
from common.settings import Change, Mistake, Section, SettingsFile, SettingsInvalid
from updater.core.rules import Mode, Rollout
from updater.http.endpoint import parse_endpoint
from updater.trial_settings import CompareSection, GateSection, ObserveSection, Seconds, ShadowSection, Share
from updater.webhook_settings import WebhookSection, check_webhook_names

MAX_WEBHOOKS = 8
ALL_PERCENT = 100.0
GIB = 1 << 30
MAX_PATTERN_CHARS = 200
FOLLOW_RELEASES, _FOLLOW_BRANCH = "releases", "branch:"
FOLLOW_PATTERN = r"^(releases|branch:[A-Za-z0-9][A-Za-z0-9._+-]{0,127})$"
HUB_MODEL_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)?$"


class PolicySection(Section):
    """`[updater.models.NAME.policy]`: which revisions are installed."""

    mode: Annotated[
        Mode,
        Field(
            description="auto: install what passes; approve: ask an operator first; manual: only requested revisions"
        ),
    ] = Mode.AUTO
    pattern: Annotated[
        str,
        Field(
            max_length=MAX_PATTERN_CHARS,
            description="regular expression for release tags; its capture groups are compared in order; "
            '"": SemVer, v1.0 being 1.0.0',
        ),
    ] = ""
    prereleases: Annotated[bool, Field(description="whether pre-releases such as 1.2.0-rc.1 are installed")] = False
    max_major_jump: Annotated[
        int, Field(ge=0, le=10**9, description="largest allowed increase of the major version; 0 = unlimited")
    ] = 1
    deny: Annotated[
        tuple[str, ...],
        Field(max_length=1000, description="revisions that are never installed; of a branch: digests or commit ids"),
    ] = ()
    pin: Annotated[
        str,
        Field(
            max_length=200,
            description="the only revision that may be installed; of a branch: a digest or commit id; empty: any",
        ),
    ] = ""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if value and not groups:
            raise ValueError("needs capture groups, which define the order of releases")
        return value


class ModelUpdatesSection(Section):
    """`[updater.models.NAME]`: where the revisions of a model come from and how they are tested."""

    hub_folder: Annotated[Path | None, Field(description="folder of revisions, filled by `hotslot hub add`")] = None
    hub_model: Annotated[
        str,
        Field(max_length=200, pattern=HUB_MODEL_PATTERN, description="OWNER/NAME on the hub, instead of hub_folder"),
    ] = ""
    follow: Annotated[
        str,
        Field(
            pattern=FOLLOW_PATTERN,
            description='what updates follow: "releases", tags by their version, or "branch:NAME", its content',
        ),
    ] = FOLLOW_RELEASES
    golden: Annotated[Path | None, Field(description="folder of the golden set; without one, updates are HELD")] = None
    golden_min_accuracy: Annotated[
        Share, Field(description="lowest accuracy that passes, if the golden set requires none higher")
    ] = 0.0
    poll_seconds: Annotated[float, Field(ge=0.5, le=86400, description="time between two polls of the hub")] = 60.0
    rollout: Annotated[
        Rollout,
        Field(
            description="trial: all callers at once, on trial; shadow: copies of requests first, then the trial; "
            "canary: a trial with a growing share of the requests; cpu_bridge: as trial, and where the device has no "
            "room for two models the active one answers from the CPU while the new one is tried; unload_first: as "
            "trial, and where two do not fit the active one is unloaded first, and nothing answers until the new one "
            "is on trial"
        ),
    ] = Rollout.TRIAL
    steps: Annotated[
        tuple[float, ...],
        Field(
            min_length=1,
            max_length=20,
            description="percentages of the requests that a canary gets; each lasts at least observe.window_seconds",
        ),
    ] = (5.0, 25.0, 50.0, 100.0)
    policy: PolicySection = PolicySection()
    gate: GateSection = GateSection()
    observe: ObserveSection = ObserveSection()
    compare: CompareSection = CompareSection()
    shadow: ShadowSection = ShadowSection()

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or not value[0] > 0 or value[-1] != ALL_PERCENT:
            raise ValueError("must be growing percentages above 0, the last one 100")
        return value

    @model_validator(mode="after")
    def _check_hub(self) -> "ModelUpdatesSection":
        if (self.hub_folder is None) == (not self.hub_model):
            raise ValueError("needs either hub_folder or hub_model")
        return self

    @model_validator(mode="after")
    def _check_follow(self) -> "ModelUpdatesSection":
        if self.branch and (self.policy.pattern or self.policy.prereleases):
            raise ValueError('follow = "branch:…" has no versions: remove pattern and prereleases from policy')
        return self

    @property
    def branch(self) -> str:
        """The branch that is followed; empty if releases are."""
        return self.follow.removeprefix(_FOLLOW_BRANCH) if self.follow != FOLLOW_RELEASES else ""


class UpdaterSection(Section):
    """`[updater]`: settings that all models share."""

    models: Annotated[
        dict[str, ModelUpdatesSection],
        Change.MODELS,
        Field(max_length=8, description="models to keep up to date, by their names in [[models]]"),
    ] = {}  # noqa: RUF012  copied for each
    hub_endpoint: Annotated[
        str,
        Change.MODELS,
        Field(max_length=500, description="URL of the hub for all hub_model; empty: ModelScope's public hub"),
    ] = ""
    hub_token_file: Annotated[
        Path | None,
        Change.MODELS,
        Field(description="file with the token for private models; sent only to hub_endpoint"),
    ] = None
    hub_token_variable: Annotated[
        str,
        Change.MODELS,
        Field(
            max_length=200,
            pattern=r"^[A-Za-z0-9_]*$",
            description="name of the environment variable that has the token, instead of hub_token_file",
        ),
    ] = ""
    hub_ca_file: Annotated[
        Path | None, Change.MODELS, Field(description="CA certificates to trust instead of the system's")
    ] = None
    hub_certificate_file: Annotated[
        Path | None,
        Change.MODELS,
        Field(description="PEM file with the certificate to show to a hub that asks for one"),
    ] = None
    hub_key_file: Annotated[
        Path | None, Change.MODELS, Field(description="PEM file with the key of hub_certificate_file")
    ] = None
    hub_private_hosts: Annotated[
        tuple[str, ...],
        Change.MODELS,
        Field(max_length=100, description="hosts with private addresses that the hub may redirect to"),
    ] = ()
    hub_connect_seconds: Annotated[
        float, Change.MODELS, Field(gt=0, le=60, description="time limit of connecting to one address of the hub")
    ] = 10.0
    hub_stall_seconds: Annotated[
        float, Change.MODELS, Field(gt=0, le=600, description="longest time without data from the hub")
    ] = 20.0
    hub_min_bytes_a_second: Annotated[
        int,
        Change.MODELS,
        Field(ge=0, le=1 << 30, description="a download slower than this for a minute is cancelled and retried"),
    ] = 16384
    missing_hashes: Annotated[
        Literal["compute", "refuse"],
        Change.MODELS,
        Field(
            description="compute: a file that the hub lists without SHA-256 is identified by the one computed from its "
            "downloaded bytes; refuse: such a revision is not taken"
        ),
    ] = "compute"
    metrics_host: Annotated[Host, Field(description="address of the /metrics endpoint, spelt as server.host")] = (
        "127.0.0.1"
    )
    metrics_port: Annotated[
        int, Field(ge=-1, le=65535, description="port of the /metrics endpoint; 0: any free port, -1: off")
    ] = 9096
    reserve_bytes: Annotated[
        int, Change.MODELS, Field(ge=0, le=1 << 44, description="disk space that an update leaves free")
    ] = GIB
    max_revision_bytes: Annotated[
        int, Change.MODELS, Field(ge=1 << 20, le=1 << 44, description="largest revision that is downloaded")
    ] = 64 * GIB
    retained_bytes: Annotated[
        int,
        Change.MODELS,
        Field(
            ge=0,
            le=1 << 50,
            description="disk space for older bundles and sources, in addition to the last two committed",
        ),
    ] = 16 * GIB
    webhooks: Annotated[
        tuple[WebhookSection, ...], Field(max_length=MAX_WEBHOOKS, description="receivers of update events")
    ] = ()
    max_failures_an_hour: Annotated[
        int,
        Change.MODELS,
        Field(
            ge=1,
            le=100,
            description="more failed updates than this within an hour open the circuit breaker `activation`",
        ),
    ] = 3
    breaker_first_seconds: Annotated[
        Seconds,
        Change.MODELS,
        Field(description="first pause after consecutive failed updates; doubles with each failure"),
    ] = 3600.0
    device_first_seconds: Annotated[
        Seconds,
        Change.MODELS,
        Field(description="first pause before a device that ran out of memory is retried; doubles with each failure"),
    ] = 600.0

    @field_validator("webhooks")
    @classmethod
    def _check_webhooks(cls, value: tuple[WebhookSection, ...]) -> tuple[WebhookSection, ...]:
        return check_webhook_names(value)

    @field_validator("hub_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        return normalize_endpoint(value) if value else value

    @model_validator(mode="after")
    def _check_token(self) -> "UpdaterSection":
        if self.hub_token_file is not None and self.hub_token_variable:
            raise ValueError("has both hub_token_file and hub_token_variable: set only one")
        if (self.hub_certificate_file is None) != (self.hub_key_file is None):
            raise ValueError("needs hub_certificate_file and hub_key_file together")
        return self


class UpdaterSettings(SettingsFile):
    """The settings file, as far as the updater reads it."""

    updater: UpdaterSection = UpdaterSection(models={})


JOURNAL_NAME, WITNESS_NAME = "journal.db", "journal.witness"  # in the state folder
CRASH_VARIABLE = "HOTSLOT_CRASH_AT"


def read_crash_point() -> str:
    """The crash point that a test has armed, see `updater.loop.CrashPoints`; not a setting for operators."""
    return os.environ.get(CRASH_VARIABLE, "")


def normalize_endpoint(value: str) -> str:
    """Normalize the URL of a hub; https:// is the default scheme.

    Raises:
        ValueError: it is not a valid URL.
    """
    endpoint = parse_endpoint(value if "://" in value else f"https://{value}")
    if "?" in endpoint.target or "#" in value:
        raise ValueError("must not contain a query or a fragment")
    return endpoint.url.rstrip("/")


def check_names(settings: UpdaterSettings) -> None:
    """Check that every `[updater.models.NAME]` section belongs to a model.

    Raises:
        SettingsInvalid: lists all sections that do not.
    """
    known = {model.name for model in settings.models}
    mistakes = [
        Mistake(f"updater.models.{name}", "no [[models]] table has this name")
        for name in settings.updater.models
        if name not in known
    ]
    if mistakes:
        raise SettingsInvalid(mistakes)
