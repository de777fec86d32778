"""The server's settings in `hotslot.toml`: `[server]` and `[runner]`, with ranges and defaults."""

import socket
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from common.address import Host
from common.settings import DEFAULT_HOST, DEFAULT_PORT, Change, Section, SettingsFile
from inference.server.health import Overall

MIB = 1 << 20
MAX_NAME_CHARS = 128


class TextRule(StrEnum):
    """What the model reads of a text."""

    AS_SEEN = "as_seen"  # what a person sees
    AS_STOCK = "as_stock"  # the caller's characters, unchanged, as in ModelScope's pipeline


class ServerSection(Section):
    """`[server]`: addresses, admission limits, drain."""

    host: Annotated[Host, Field(description="address or name to listen on, or unix:PATH; :: listens on IPv4 too")] = (
        DEFAULT_HOST
    )
    port: Annotated[int, Field(ge=0, le=65535, description="gRPC port; 0 = any free port")] = DEFAULT_PORT
    metrics_host: Annotated[Host, Field(description="address of /metrics, spelt as host")] = "127.0.0.1"
    metrics_port: Annotated[
        int, Field(ge=-1, le=65535, description="port of /metrics; 0 = any free port, -1 = off")
    ] = 9095
    tokens_file: Annotated[
        Path | None,
        Change.AT_ONCE,
        Field(
            description="file of hashed bearer tokens, written by `hotslot token new`; then every call needs one of "
            "them. Read again when it changes"
        ),
    ] = None
    reflection: Annotated[bool, Field(description="whether gRPC server reflection is enabled")] = True
    open_inference: Annotated[
        bool, Field(description="whether the Open Inference Protocol (version 2) is served beside hotslot's own API")
    ] = True
    max_message_bytes: Annotated[
        int, Field(ge=MIB, le=63 * MIB, description="largest gRPC message; a larger one ends the call")
    ] = 32 * MIB
    max_image_bytes: Annotated[
        int, Change.AT_ONCE, Field(ge=1024, le=60 * MIB, description="largest picture file, in bytes")
    ] = 16 * MIB
    max_image_pixels: Annotated[int, Change.MODELS, Field(ge=1, le=10**9, description="largest picture, in pixels")] = (
        64 * 10**6
    )
    max_image_side_pixels: Annotated[
        int, Change.MODELS, Field(ge=1, le=65535, description="largest width or height of a picture, in pixels")
    ] = 16384
    max_image_scans: Annotated[
        int,
        Change.MODELS,
        Field(ge=1, le=1000, description="most scans of a JPEG; a progressive one usually has about 10"),
    ] = 100
    max_image_seconds: Annotated[
        float,
        Change.MODELS,
        Field(
            gt=0,
            le=60,
            description="longest decoding of a picture, as estimated from its header for a core of a current server",
        ),
    ] = 2.0
    max_image_memory_bytes: Annotated[
        int,
        Change.MODELS,
        Field(
            ge=16 * MIB,
            le=4096 * MIB,
            description="most memory for decoding a picture, as estimated from its header; enforced in the process"
            " that decodes it",
        ),
    ] = 272 * MIB
    pictures: Annotated[
        Literal["as_seen", "as_stock"],
        Change.MODELS,
        Field(
            description="what the model sees of a picture: what a person sees (white behind transparent parts, all 16"
            " bits, colours by the profile), or what ModelScope's pipeline shows it (neither of these)"
        ),
    ] = "as_seen"
    reduced_decoding: Annotated[
        bool,
        Change.MODELS,
        Field(
            description="whether large JPEGs are decoded at a half, a quarter or an eighth of their size, but at least"
            ' twice what the model needs; several times faster. Never with pictures = "as_stock"'
        ),
    ] = True
    max_statement_chars: Annotated[
        int, Change.AT_ONCE, Field(ge=1, le=65_536, description="longest statement or premise, in characters")
    ] = 1000
    max_address_chars: Annotated[
        int,
        Change.AT_ONCE,
        # One device call of a CPU computes 16 rows of 32 characters, and an address is computed with its last row:
        # calls before it would take no time, and this one would look like a hang.
        Field(ge=1, le=512, description="longest address, in characters; one that is longer is an error"),
    ] = 500
    texts: Annotated[
        TextRule,
        Change.AT_ONCE,
        Field(
            description="what the model reads: as_seen = what a person sees (blanks of any kind become spaces,"
            " characters that are not drawn are removed, letters and accents are composed); as_stock = unchanged, as in"
            " ModelScope's pipeline"
        ),
    ] = TextRule.AS_SEEN
    max_waiting_requests: Annotated[
        int,
        Change.AT_ONCE,
        Field(
            ge=1, le=1_000_000, description="most unanswered unary requests of a model; stream items are not counted"
        ),
    ] = 10_000
    max_waiting_bytes: Annotated[
        int,
        Change.AT_ONCE,
        Field(
            ge=MIB,
            le=64 * 1024 * MIB,
            description="most bytes that the server holds for its callers: incomplete messages, requests that wait or "
            "are computed, calls, unread answers, connections; a message for which there is no room is not read",
        ),
    ] = 512 * MIB
    upload_seconds: Annotated[
        float,
        Change.AT_ONCE,
        Field(
            gt=0,
            le=3600,
            description="time for a message to arrive; a unary call that takes longer is ended, an idle stream only "
            "while the server's memory has grown without another known cause",
        ),
    ] = 12.0
    max_stream_outstanding: Annotated[
        int, Change.AT_ONCE, Field(ge=1, le=1024, description="unanswered items with which a stream is read no further")
    ] = 32
    max_deadline_seconds: Annotated[
        float, Change.AT_ONCE, Field(gt=0, le=3600, description="deadline of calls that set none or a longer one")
    ] = 60.0
    max_connection_age_seconds: Annotated[
        float,
        Field(
            ge=10,
            le=86400,
            description="age after which a connection is closed gracefully (GOAWAY), so that clients reconnect",
        ),
    ] = 600.0
    max_connection_idle_seconds: Annotated[
        float,
        Field(ge=1, le=86400, description="time without a call after which a connection is closed gracefully (GOAWAY)"),
    ] = 300.0
    drain_delay_seconds: Annotated[
        float, Change.AT_ONCE, Field(ge=0, le=300, description="time between NOT_SERVING and refusing new requests")
    ] = 5.0
    grace_seconds: Annotated[
        float,
        Change.AT_ONCE,
        Field(gt=0, le=300, description="time for accepted calls to finish before they are cancelled"),
    ] = 20.0
    poison_seconds: Annotated[
        float,
        Change.MODELS,
        Field(
            ge=0,
            le=86400,
            description="how long an input that ended two runner processes is refused at once; 0 = not at all",
        ),
    ] = 600.0
    keep_samples: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="most calls of a comparison that are kept, with what callers sent, because two revisions answer"
            " them differently: private files in the state folder's samples/, of the last three comparisons, which"
            " `hotslot updates show` lists; 0 = none, and what was kept is deleted",
        ),
    ] = 0
    self_test_seconds: Annotated[
        float,
        Change.MODELS,
        Field(gt=0, le=3600, description="a self-test runs if no request has succeeded for this long"),
    ] = 10.0


class RunnerSection(Section):
    """`[runner]`: runner processes, device calls, timeouts."""

    standby: Annotated[
        bool,
        Field(description="whether the free slot keeps an idle process, and one more while a candidate loads"),
    ] = True
    fork_server: Annotated[
        bool,
        Field(
            description="whether runners are forked, in milliseconds, from a process that has imported torch and the"
            " engines and holds no model; needs `standby`, and is not used with `extra_engines`. Otherwise each runner"
            " imports them itself"
        ),
    ] = True
    threads: Annotated[int, Field(ge=0, le=1024, description="compute threads on a CPU; 0 = chosen by the engine")] = 0
    prepare_processes: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="decoder processes that work at once on pictures that take long; two more are kept for others."
            " 0 = one for each usable CPU, at most 16",
        ),
    ] = 0
    prepare_memory_bytes: Annotated[
        int,
        Field(ge=16 * MIB, le=64 * 1024 * MIB, description="most memory of a runner for decoding pictures at once"),
    ] = 512 * MIB
    prepare_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="time limit for decoding and tokenising one item")
    ] = 30.0
    compiled_kernels: Annotated[
        bool,
        Field(
            description="whether runners on a CPU with AVX2 or AVX-512 use attention and float32 products written in"
            " C++, which are compiled in a second at the first load of a large model and kept in the state folder's"
            " kernels/; without a C++ compiler torch's operations are used"
        ),
    ] = True
    max_call_rows: Annotated[
        int,
        Field(ge=0, le=4096, description="most rows in a device call, up to the engine's limit; 0: that limit"),
    ] = 0
    max_call_seconds: Annotated[
        float, Field(gt=0, le=600, description="longest expected device call; more work is split into several")
    ] = 2.0
    min_timeout_seconds: Annotated[float, Field(gt=0, le=600, description="smallest time limit of a device call")] = 2.0
    limit_factor: Annotated[
        float,
        Field(
            ge=1.5,
            le=100,
            description="time limit of a device call, as a multiple of its expected time; on a CPU it limits CPU time "
            "and time asleep, and wall-clock time has ten times that",
        ),
    ] = 8.0
    silence_seconds: Annotated[
        float, Field(ge=0.3, le=600, description="a runner without a heartbeat for this long is killed")
    ] = 2.0
    start_seconds: Annotated[
        float, Field(gt=0, le=3600, description="time for a new process to finish its imports")
    ] = 120.0
    load_stall_seconds: Annotated[
        float, Field(gt=0, le=3600, description="a load without progress for this long is killed")
    ] = 120.0
    retire_seconds: Annotated[float, Field(gt=0, le=600, description="a retiring process is killed after this")] = 10.0
    respawn_first_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=60,
            description="pause before a restart, after the second death in a row; doubles with each further one. A"
            " model that answered for longer than its load and this pause take begins a new row",
        ),
    ] = 0.5
    respawn_cap_seconds: Annotated[float, Field(gt=0, le=3600, description="longest pause before a restart")] = 30.0
    respawn_give_up: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="failures of its runner in a row, or within ten minutes and each after less than ten seconds "
            "of service, after which a model is reported as FAILED (restarts continue): model_given_up in the log, "
            "hotslot_model_given_up 1, FAILED in the status; "
            "liveness stays SERVING",
        ),
    ] = 10
    extra_engines: Annotated[
        Mapping[str, str],
        Field(
            max_length=16,
            description='engines beside the built-in ones, name = "module:function"; trusted code, without a '
            "conversion: for tests and benchmarks",
        ),
    ] = {}


class HealthSection(Section):
    """`[health]`: what the health service reports."""

    host: Annotated[Host, Field(description="address of the health port, spelt as server.host")] = DEFAULT_HOST
    port: Annotated[
        int,
        Field(
            ge=-1,
            le=65535,
            description="port on which the health service is served too, without TLS, for probes: clients' "
            "connections cannot block probes; 0 = any free port, -1 = off",
        ),
    ] = -1
    needs_token: Annotated[
        bool,
        Change.AT_ONCE,
        Field(
            description="whether the health service of the gRPC port needs a token too, if server.tokens_file is set; "
            "the health port never does"
        ),
    ] = False
    overall: Annotated[
        Overall,
        Change.AT_ONCE,
        Field(
            description='which models must be ready for "" (the whole server) and for the name of a gRPC service: all '
            "or any; a model's own name reports that model alone"
        ),
    ] = Overall.ALL


class SchedulingSection(Section):
    """`[scheduling]`: who shares device time with whom."""

    caller_metadata_key: Annotated[
        str,
        Change.AT_ONCE,
        Field(
            pattern=r"^([a-z0-9_.-]{1,64})?$",
            description="metadata key in which a proxy names the caller. Order: token's name, client certificate's "
            "name (unless in proxy_certificates), this key, the proxy's certificate, the connection",
        ),
    ] = ""
    proxy_certificates: Annotated[
        tuple[str, ...],
        Change.AT_ONCE,
        Field(max_length=100, description="names of proxies' client certificates, which name callers by that key"),
    ] = ()
    interactive_share: Annotated[
        float,
        Change.MODELS,
        Field(ge=0.05, le=0.95, description="share of rows that interactive requests are sure of while bulk ones wait"),
    ] = 0.5


class CallerSection(Section):
    """One `[[callers]]` table: the rights of a caller; others have the defaults."""

    name: Annotated[
        str, Field(min_length=1, max_length=MAX_NAME_CHARS, description="name of its token, or see caller_metadata_key")
    ]
    priority: Annotated[
        Literal["auto", "interactive", "bulk"],
        Field(description="priority of its requests; auto: unary calls are interactive, stream items are bulk"),
    ] = "auto"
    weight: Annotated[
        float, Field(ge=0.01, le=100, description="share of device time, relative to callers of the same priority")
    ] = 1.0
    rows_per_second: Annotated[
        float, Field(ge=0, le=1e6, description="quota of rows (statements or addresses) per second; 0 = no quota")
    ] = 0.0


class ServerSettings(SettingsFile):
    """All settings of the server process."""

    server: ServerSection = ServerSection()
    health: HealthSection = HealthSection()
    runner: Annotated[RunnerSection, Change.MODELS] = RunnerSection()
    scheduling: SchedulingSection = SchedulingSection()
    callers: Annotated[
        tuple[CallerSection, ...],
        Change.AT_ONCE,
        Field(max_length=1000, description="callers with rights of their own"),
    ] = ()

    @field_validator("callers")
    @classmethod
    def _check_callers(cls, value: tuple[CallerSection, ...]) -> tuple[CallerSection, ...]:
        names = [caller.name for caller in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two callers are named {name!r}")
        return value

    @property
    def drain_seconds(self) -> float:
        """The longest time from SIGTERM to the end."""
        return self.server.drain_delay_seconds + self.server.grace_seconds + self.runner.retire_seconds

    @property
    def node_name(self) -> str:
        """The configured name of this host, or its host name."""
        return self.node or socket.gethostname()
