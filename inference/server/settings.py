"""What the server reads of `hotslot.toml`: `[server]` and `[runner]`, with every range and default."""

import socket
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from common.settings import DEFAULT_HOST, DEFAULT_PORT, Section, SettingsFile

MIB = 1 << 20


class ServerSection(Section):
    """`[server]`: where it listens, what it admits, how it ends."""

    host: Annotated[str, Field(min_length=1, max_length=253, description="address to listen on")] = DEFAULT_HOST
    port: Annotated[int, Field(ge=0, le=65535, description="gRPC port; 0 takes a free one")] = DEFAULT_PORT
    metrics_host: Annotated[str, Field(min_length=1, max_length=253, description="address of /metrics")] = "127.0.0.1"
    metrics_port: Annotated[
        int, Field(ge=-1, le=65535, description="port of /metrics; 0 takes a free one, -1 is off")
    ] = 9095
    reflection: Annotated[bool, Field(description="whether the API can be asked for its own description")] = True
    max_message_bytes: Annotated[int, Field(ge=MIB, le=63 * MIB, description="cap of the transport")] = 32 * MIB
    max_image_bytes: Annotated[int, Field(ge=1024, le=60 * MIB, description="most bytes of a picture")] = 16 * MIB
    max_image_pixels: Annotated[int, Field(ge=1, le=10**9, description="most pixels of a picture")] = 64 * 10**6
    max_image_side_pixels: Annotated[int, Field(ge=1, le=65535, description="most pixels of a side")] = 16384
    max_statement_chars: Annotated[int, Field(ge=1, le=100_000, description="most characters of a statement")] = 1000
    max_waiting_requests: Annotated[
        int, Field(ge=1, le=100_000, description="most accepted requests without an answer, a model")
    ] = 256
    max_waiting_bytes: Annotated[
        int, Field(ge=MIB, le=64 * 1024 * MIB, description="most bytes of accepted requests, a model")
    ] = 512 * MIB
    max_stream_outstanding: Annotated[
        int, Field(ge=1, le=1024, description="most items of a stream that wait for their answer")
    ] = 32
    max_deadline_seconds: Annotated[
        float, Field(gt=0, le=3600, description="longest deadline; also that of a call without one")
    ] = 60.0
    max_connection_age_seconds: Annotated[
        float, Field(ge=10, le=86400, description="age at which a connection is asked to come anew")
    ] = 600.0
    drain_delay_seconds: Annotated[
        float, Field(ge=0, le=300, description="how long to serve on after saying NOT_SERVING")
    ] = 5.0
    grace_seconds: Annotated[float, Field(gt=0, le=300, description="time for accepted calls at the end")] = 20.0
    self_test_seconds: Annotated[
        float, Field(gt=0, le=3600, description="age of the last good answer at which a self-test is run")
    ] = 10.0


class RunnerSection(Section):
    """`[runner]`: how runner processes are kept, and how long they may take."""

    standby: Annotated[bool, Field(description="whether a process stands ready in the free slot")] = True
    threads: Annotated[int, Field(ge=0, le=1024, description="compute threads on a CPU; 0: the engine's choice")] = 0
    prepare_threads: Annotated[int, Field(ge=1, le=64, description="threads that decode pictures")] = 2
    max_batch_items: Annotated[int, Field(ge=1, le=1024, description="most requests of one frame")] = 16
    max_batch_rows: Annotated[int, Field(ge=1, le=4096, description="most statements of one frame")] = 64
    max_call_seconds: Annotated[
        float, Field(gt=0, le=600, description="longest expected device call; longer work is cut")
    ] = 2.0
    min_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="a batch is never called hung before this")
    ] = 2.0
    limit_factor: Annotated[
        float, Field(ge=1.5, le=100, description="a batch is hung after so many times its expected time")
    ] = 8.0
    silence_seconds: Annotated[
        float, Field(ge=0.3, le=600, description="a runner without a heartbeat for so long is ended")
    ] = 2.0
    start_seconds: Annotated[float, Field(gt=0, le=3600, description="until a new process must have imported")] = 120.0
    load_stall_seconds: Annotated[float, Field(gt=0, le=3600, description="a load without progress is ended")] = 120.0
    retire_seconds: Annotated[float, Field(gt=0, le=600, description="a retiring process is ended after this")] = 10.0
    respawn_first_seconds: Annotated[float, Field(ge=0, le=60, description="pause after a second death")] = 0.5
    respawn_cap_seconds: Annotated[float, Field(gt=0, le=3600, description="longest pause between starts")] = 30.0
    respawn_give_up: Annotated[int, Field(ge=1, le=1000, description="deaths in a row after which liveness fails")] = 10
    extra_engines: Annotated[
        Mapping[str, str],
        Field(max_length=16, description='engines of your own, name = "module:function"; trusted code'),
    ] = {}


class ServerSettings(SettingsFile):
    """All that the server process reads."""

    server: ServerSection = ServerSection()
    runner: RunnerSection = RunnerSection()

    @property
    def node_name(self) -> str:
        """The configured name of this host, or its host name."""
        return self.node or socket.gethostname()
