"""What the updater reads of `hotslot.toml`: `[updater]` and `[updater.models.NAME]`, with every range and default."""

import ipaddress
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from common.settings import Mistake, Section, SettingsFile, SettingsInvalid
from updater.core.breaker import BreakerName, BreakerRules
from updater.core.rules import (
    ACTIVATION_BREAKER,
    DEVICE_BREAKER,
    HUB_BREAKER,
    GateRules,
    Mode,
    ObserveRules,
    ReleasePolicy,
    Rules,
)
from updater.http.endpoint import parse_endpoint

MAX_WEBHOOKS = 8
MAX_URL_CHARS = 2000
_Pattern = Annotated[str, Field(pattern=r"^[a-z_*]{1,64}$")]


class WebhookSection(Section):
    """`[[updater.webhooks]]`: one receiver; see docs/webhooks.md."""

    url: Annotated[
        str, Field(min_length=8, max_length=MAX_URL_CHARS, description="where events are posted; http:// or https://")
    ]
    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9._:\[\]-]{0,64}$", description="in logs and metrics; default: the URL's host"),
    ] = ""
    events: Annotated[
        tuple[_Pattern, ...],
        Field(min_length=1, max_length=64, description='names of events; "*" stands for any letters'),
    ] = ("*",)
    token_file: Annotated[
        Path | None, Field(description="file with a bearer token, read for each delivery; needs https")
    ] = None
    timeout_seconds: Annotated[float, Field(ge=0.1, le=60, description="of one delivery, as a whole")] = 10.0

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no http:// or https:// URL with a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("has a name or a password in it; put a token into token_file")
        if parts.fragment or not value.isascii() or any(letter.isspace() for letter in value):
            raise ValueError("has a fragment, a space, or letters that belong escaped")
        parse_endpoint(value)  # raises ValueError for what the HTTP client would not ask
        return value

    @model_validator(mode="after")
    def _check_token(self) -> "WebhookSection":
        parts = urlsplit(self.url)
        if self.token_file is not None and parts.scheme != "https" and not _is_this_machine(parts):
            raise ValueError("token_file needs an https:// URL: a token is not sent in the clear")
        return self

    @property
    def shown_name(self) -> str:
        """How it is called in logs, metrics and the journal."""
        return self.name or urlsplit(self.url).netloc


def check_webhook_names(webhooks: tuple[WebhookSection, ...]) -> tuple[WebhookSection, ...]:
    """Every receiver has a name of its own.

    Raises:
        ValueError: two have the same.
    """
    names = [hook.shown_name for hook in webhooks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two webhooks are called {twice!r}: give each a name")
    return webhooks


def _is_this_machine(parts: SplitResult) -> bool:
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


GIB = 1 << 30
MAX_PATTERN_CHARS = 200
HUB_MODEL_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
Seconds = Annotated[float, Field(gt=0, le=86400)]
Share = Annotated[float, Field(ge=0, le=1)]


class PolicySection(Section):
    """`[updater.models.NAME.policy]`: which revisions are taken."""

    mode: Annotated[
        Mode,
        Field(description="auto takes what passes, approve asks a person first, manual takes only what a person names"),
    ] = Mode.AUTO
    pattern: Annotated[
        str,
        Field(max_length=MAX_PATTERN_CHARS, description='ordered capture groups of release tags; "": SemVer'),
    ] = ""
    prereleases: Annotated[bool, Field(description="whether 1.2.0-rc.1 is a release")] = False
    max_major_jump: Annotated[
        int, Field(ge=0, le=10**9, description="most steps of the first number at once; 0: any")
    ] = 1
    deny: Annotated[tuple[str, ...], Field(max_length=1000, description="revisions that are never taken")] = ()
    pin: Annotated[str, Field(max_length=200, description="the only revision that may be taken")] = ""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        if value and not groups:
            raise ValueError("needs capture groups: they give the order")
        return value


class GateSection(Section):
    """`[updater.models.NAME.gate]`: what a candidate is held against before a caller meets it."""

    max_accuracy_loss: Annotated[Share, Field(description="of the active model's accuracy")] = 0.01
    max_negative_flips: Annotated[Share, Field(description="questions that were right before")] = 0.05
    significance: Annotated[float, Field(gt=0, lt=1, description="of the exact paired test")] = 0.05
    min_agreement: Annotated[Share, Field(description="with the active model, where nothing is expected")] = 0.90
    max_cost_factor: Annotated[
        float, Field(ge=1, le=100, description="of the active model's device time; beyond it is HELD")
    ] = 1.5


class ObserveSection(Section):
    """`[updater.models.NAME.observe]`: how a trial is judged."""

    window_seconds: Annotated[Seconds, Field(description="least time on trial")] = 600.0
    max_seconds: Annotated[Seconds, Field(description="without enough answers by then there is no verdict")] = 1800.0
    min_answers: Annotated[int, Field(ge=1, le=10**6, description="requests before any verdict")] = 50
    error_margin: Annotated[Share, Field(description="more failures than before that are allowed")] = 0.01
    burst_failures: Annotated[int, Field(ge=2, le=10**6, description="so many failures roll back at once")] = 5
    burst_share: Annotated[Share, Field(description="if they are such a share of all")] = 0.20
    max_not_finite: Annotated[int, Field(ge=0, le=10**6, description="more answers with NaN roll back at once")] = 2
    max_restarts: Annotated[int, Field(ge=0, le=1000, description="more deaths of its runner roll back at once")] = 1
    max_cost_factor: Annotated[
        float, Field(ge=1, le=100, description="of the device time a row of the model before; beyond it is HELD")
    ] = 2.0
    significance: Annotated[float, Field(gt=0, lt=1, description="of the test that compares device times")] = 0.01
    min_compared: Annotated[
        int, Field(ge=2, le=10**6, description="batches, or answers, of each model before cost, or latency, is judged")
    ] = 30
    max_latency_factor: Annotated[
        float, Field(ge=1, le=100, description="95th percentile, of what the model before answers at the same time")
    ] = 2.0
    latency_margin_seconds: Annotated[
        float, Field(ge=0, le=60, description="so much later is noise, whatever the factor")
    ] = 0.05
    probes_allowed: Annotated[bool, Field(description="whether a trial without traffic may end well on probes")] = True
    trial_lease_seconds: Annotated[
        float, Field(ge=5, le=3600, description="after so long without the updater a trial is taken back")
    ] = 60.0
    keep_warm_seconds: Annotated[
        float, Field(ge=0, le=86400, description="the model before stays loaded after a commit")
    ] = 60.0

    @model_validator(mode="after")
    def _check_order(self) -> "ObserveSection":
        if self.max_seconds < self.window_seconds:
            raise ValueError("max_seconds must not be less than window_seconds")
        return self


class ModelUpdatesSection(Section):
    """`[updater.models.NAME]`: where a model's revisions come from and how they are proven."""

    hub_folder: Annotated[Path | None, Field(description="folder of revisions, filled by `hotslot hub add`")] = None
    hub_model: Annotated[
        str,
        Field(max_length=200, pattern=HUB_MODEL_PATTERN, description="OWNER/NAME on the hub, instead of hub_folder"),
    ] = ""
    golden: Annotated[Path | None, Field(description="folder of the golden set; without one updates are held")] = None
    golden_min_accuracy: Annotated[Share, Field(description="lowest accuracy that passes, beside the set's own")] = 0.0
    poll_seconds: Annotated[float, Field(ge=0.5, le=86400, description="pause between two looks at the hub")] = 60.0
    policy: PolicySection = PolicySection()
    gate: GateSection = GateSection()
    observe: ObserveSection = ObserveSection()

    @model_validator(mode="after")
    def _check_hub(self) -> "ModelUpdatesSection":
        if (self.hub_folder is None) == (not self.hub_model):
            raise ValueError("needs hub_folder or hub_model: one of the two")
        return self


class UpdaterSection(Section):
    """`[updater]`: limits that all models share."""

    models: Annotated[
        dict[str, ModelUpdatesSection], Field(max_length=8, description="by the names of [[models]]")
    ] = {}  # noqa: RUF012  copied for each
    hub_endpoint: Annotated[
        str, Field(max_length=500, description="of the hub of all hub_model; empty: ModelScope's public one")
    ] = ""
    hub_token_file: Annotated[
        Path | None, Field(description="holds the token for private models; sent to hub_endpoint and nowhere else")
    ] = None
    hub_token_variable: Annotated[
        str,
        Field(max_length=200, pattern=r"^[A-Za-z0-9_]*$", description="variable that holds the token instead"),
    ] = ""
    hub_ca_file: Annotated[Path | None, Field(description="certificates to trust instead of the system's")] = None
    hub_private_hosts: Annotated[
        tuple[str, ...],
        Field(max_length=100, description="hosts with private addresses to which the hub may redirect"),
    ] = ()
    hub_connect_seconds: Annotated[float, Field(gt=0, le=60, description="for one connection")] = 10.0
    hub_stall_seconds: Annotated[float, Field(gt=0, le=600, description="longest silence of the hub")] = 20.0
    hub_min_bytes_a_second: Annotated[
        int, Field(ge=0, le=1 << 30, description="a transfer that brings less for a minute is broken off")
    ] = 16384
    metrics_host: Annotated[str, Field(min_length=1, max_length=253, description="address of /metrics")] = "127.0.0.1"
    metrics_port: Annotated[
        int, Field(ge=-1, le=65535, description="port of /metrics; 0 takes a free one, -1 is off")
    ] = 9096
    reserve_bytes: Annotated[int, Field(ge=0, le=1 << 44, description="of the disk that an update leaves free")] = GIB
    max_revision_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 44, description="most bytes of a revision")] = 64 * GIB
    known_sections: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=80)], ...],
        Field(max_length=100, description="that may stand at the top of configuration.json beside the format's own"),
    ] = ()
    retained_bytes: Annotated[
        int, Field(ge=0, le=1 << 50, description="kept on disk beside the last two committed bundles")
    ] = 16 * GIB
    webhooks: Annotated[
        tuple[WebhookSection, ...], Field(max_length=MAX_WEBHOOKS, description="who is told of updates over HTTP")
    ] = ()
    max_failures_an_hour: Annotated[int, Field(ge=1, le=100, description="more failed updates stop updates")] = 3
    breaker_first_seconds: Annotated[Seconds, Field(description="first pause after updates that failed in a row")] = (
        3600.0
    )
    device_first_seconds: Annotated[
        Seconds,
        Field(description="pause before a device that ran out of memory is tried again; doubles with each failure"),
    ] = 600.0

    @field_validator("webhooks")
    @classmethod
    def _check_webhooks(cls, value: tuple[WebhookSection, ...]) -> tuple[WebhookSection, ...]:
        return check_webhook_names(value)

    @field_validator("hub_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        return checked_endpoint(value) if value else value

    @model_validator(mode="after")
    def _check_token(self) -> "UpdaterSection":
        if self.hub_token_file is not None and self.hub_token_variable:
            raise ValueError("has hub_token_file and hub_token_variable: name one of the two")
        return self


class UpdaterSettings(SettingsFile):
    """All that the updater reads."""

    updater: UpdaterSection = UpdaterSection(models={})


JOURNAL_NAME = "journal.db"  # in the state folder; once it is there, it says what is committed
CRASH_VARIABLE = "HOTSLOT_CRASH_AT"


def armed_crash_point() -> str:
    """Where a test wants the updater to kill itself; see `updater.loop`. No setting of an operator's."""
    return os.environ.get(CRASH_VARIABLE, "")


def checked_endpoint(value: str) -> str:
    """An address of a hub in its one form.

    Raises:
        ValueError: it is none.
    """
    endpoint = parse_endpoint(value if "://" in value else f"https://{value}")
    if "?" in endpoint.target or "#" in value:
        raise ValueError("needs scheme, host, port and path alone")
    return endpoint.url.rstrip("/")


def check_names(settings: UpdaterSettings) -> None:
    """Every section belongs to a model.

    Raises:
        SettingsInvalid: with all that do not.
    """
    known = {model.name for model in settings.models}
    mistakes = [
        Mistake(f"updater.models.{name}", "no [[models]] table has this name")
        for name in settings.updater.models
        if name not in known
    ]
    if mistakes:
        raise SettingsInvalid(mistakes)


def _device_breaker(first: float, window: float) -> BreakerRules:
    """A return lasts as long as its window of good answers, and its load and self-test before."""
    plain = DEVICE_BREAKER
    seconds = window + plain.probe_seconds
    return replace(plain, first_seconds=first, cap_seconds=max(first, plain.cap_seconds), probe_seconds=seconds)


def rules_of(section: UpdaterSection, name: str, device: str = "auto") -> Rules:
    """The rules of one configured model.

    Args:
        section: `[updater]`.
        name: of the model; must be one of `section.models`.
        device: `device` of its `[[models]]` table.
    """
    model = section.models[name]
    policy, activation = model.policy, ACTIVATION_BREAKER
    first = section.breaker_first_seconds
    return Rules(
        policy=ReleasePolicy(policy.pattern, policy.prereleases, policy.max_major_jump, policy.deny, policy.pin),
        mode=policy.mode,
        gate=GateRules(**model.gate.model_dump()),
        observe=ObserveRules(**model.observe.model_dump()),
        breakers={
            BreakerName.HUB: HUB_BREAKER,
            BreakerName.ACTIVATION: BreakerRules(
                activation.trip_after, first, max(first, activation.cap_seconds), activation.probe_seconds
            ),
            BreakerName.DEVICE: _device_breaker(section.device_first_seconds, model.observe.window_seconds),
        },
        poll_seconds=model.poll_seconds,
        max_failures_an_hour=section.max_failures_an_hour,
        max_staged_bytes=section.max_revision_bytes,
        cap_bytes=section.retained_bytes,
        device=device,
    )
