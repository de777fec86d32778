"""Builds the parts of the server from the settings; starts nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.address import parse_address
from common.clock import Clock
from common.engine_files import ENGINES, Task
from common.exposure import GRPC_STEP, METRICS_STEP, describe_exposure, describe_open_calls
from common.logs import Logger
from common.paths import SAMPLES_FOLDER
from common.process_metrics import installed_version
from common.reload import FileUnusable, ReloadLog
from common.settings import Mistake, ModelSettings, SettingsInvalid
from common.tls import watch_certificate
from common.tokens import watch_tokens
from hotslot.runner.v1 import runner_pb2
from hotslot.status.v1 import status_pb2
from inference.server import channel_arguments, descriptors
from inference.server.access import Access, AccessRules
from inference.server.api import convert, entailment
from inference.server.api.address import MAX_ADDRESSES
from inference.server.api.interceptors import Callers
from inference.server.api.predict import PredictRules
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.api.tasks import TASK_APIS
from inference.server.events import Emit
from inference.server.model.fallback_file import FILE_NAME, CpuFallbackFile
from inference.server.model.manager import ModelManager
from inference.server.model.options import ModelOptions
from inference.server.model.policy import DeviceRules, RespawnRules, SlotRules
from inference.server.model.samples import SampleFiles
from inference.server.request import Priority
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.start import RunnerStarter
from inference.server.runner_specs import runner_spec
from inference.server.scheduling.admission import Capacity, Drain
from inference.server.scheduling.device_memory import DeviceMemories
from inference.server.scheduling.device_share import DeviceShares
from inference.server.scheduling.fair_queue import CallerRules
from inference.server.scheduling.held_bytes import HeldRules
from inference.server.scheduling.limits import LimitRules
from inference.server.settings import ServerSection, ServerSettings

if TYPE_CHECKING:
    from common.trace_export import SpanExporter
    from inference.server.trace_events import CallFacts, CallTracer


class ModelFactory:
    """Makes the managers of models, which share a clock, the memory of devices, and more."""

    def __init__(
        self,
        state_dir: Path,
        clock: Clock,
        emit: Emit,
        drain: Drain,
        warn: Callable[[str], None],
        runners: RunnerStarter,
        is_memory_tight: Callable[[], bool],
    ) -> None:
        """Start nothing; `warn` gets a sentence if a file of the state folder is unusable."""
        file = CpuFallbackFile(state_dir / FILE_NAME, warn)
        shares, memories = DeviceShares(), DeviceMemories()
        self._shared = _SharedDependencies(clock, emit, drain, file, shares, memories, runners, is_memory_tight, warn)

    def make(self, settings: ServerSettings, model: ModelSettings) -> ModelManager:
        """The manager of a model; `boot` of its commands starts it."""
        return ModelManager(_model_options(settings, model, self._shared))

    def retain_runners(self, settings: ServerSettings) -> None:
        """Keep only the waiting runners, and the engines of the fork server, that these settings need."""
        self._shared.runners.retain([runner_spec(settings, model) for model in settings.models])


def list_engines(settings: ServerSettings) -> Mapping[str, Task]:
    """The engines that the runners can load, with their task; a configured extra engine serves entailment."""
    built_in = {files.engine: files.task for files in ENGINES}
    return {**built_in, **dict.fromkeys(settings.runner.extra_engines, Task.VISUAL_ENTAILMENT)}


def caller_rules(settings: ServerSettings) -> list[CallerRules]:
    """The rights of the configured callers."""
    return [
        CallerRules(
            caller.name,
            None if caller.priority == "auto" else Priority[caller.priority.upper()],
            caller.weight,
            caller.rows_per_second,
        )
        for caller in settings.callers
    ]


def build_callers(settings: ServerSettings, clock: Clock) -> Callers:
    """Finds the caller of each call, with its configured rights."""
    callers = Callers([], "", clock.monotonic())
    configure_callers(callers, settings, clock)
    return callers


def configure_callers(callers: Callers, settings: ServerSettings, clock: Clock) -> None:
    """Give callers the rights that the settings say."""
    scheduling = settings.scheduling
    rules, key = caller_rules(settings), scheduling.caller_metadata_key
    callers.configure(rules, key, clock.monotonic(), scheduling.proxy_certificates)


def build_access(settings: ServerSettings, log: ReloadLog, clock: Clock) -> Access:
    """The access that the settings ask for.

    Raises:
        SettingsInvalid: a certificate or the tokens cannot be used.
    """
    files = settings.tls.files
    try:
        certificate = None if files is None else watch_certificate(files, log, clock)
    except FileUnusable as error:
        raise SettingsInvalid([Mistake("tls", str(error))]) from error
    return Access(
        certificate,
        load_access_rules(settings, log, clock),
        needs_client_certificate=files is not None and files.client_ca is not None,
    )


def load_access_rules(settings: ServerSettings, log: ReloadLog, clock: Clock) -> AccessRules:
    """The access rules, which may change while the server serves.

    Raises:
        SettingsInvalid: the tokens cannot be used.
    """
    tokens_file = settings.server.tokens_file
    try:
        tokens = None if tokens_file is None else watch_tokens(tokens_file, log, clock)
    except FileUnusable as error:
        raise SettingsInvalid([Mistake("server.tokens_file", str(error))]) from error
    return AccessRules(tokens, tuple(_find_exposures(settings)), is_health_open=not settings.health.needs_token)


def build_traces(
    settings: ServerSettings, clock: Clock, log: Logger
) -> tuple["SpanExporter[CallFacts] | None", "CallTracer | None"]:
    """Sends spans, and decides which calls have them; neither without a collector in the settings."""
    section = settings.traces
    if not section.endpoint:
        return None, None
    from common.trace_export import SpanExporter  # noqa: PLC0415  without traces nothing of them is loaded
    from common.traces import Sampler  # noqa: PLC0415
    from inference.server.trace_events import CallEncoder, CallTracer, count_items  # noqa: PLC0415

    service = {"service.name": "hotslot-server", "service.version": installed_version()}
    encode = CallEncoder(clock).encode
    exporter = SpanExporter(section.endpoint, section.ca_file, service, log, encode, count_items)
    return exporter, CallTracer(Sampler(section.share), clock, exporter.put)


def _find_exposures(settings: ServerSettings) -> list[str]:
    """Sentences about listeners that other machines can reach without protection."""
    server, tls = settings.server, settings.tls
    public = parse_address(server.host, server.port)
    metrics = parse_address(server.metrics_host, server.metrics_port)
    asks_who = server.tokens_file is not None or tls.client_ca_file is not None
    found = [
        *describe_exposure("the gRPC port", public, GRPC_STEP, has_tls=tls.files is not None),
        *describe_open_calls(public, asks_who=asks_who),
    ]
    if server.metrics_port >= 0:
        found += describe_exposure("the metrics port", metrics, METRICS_STEP, has_tls=tls.metrics)
    return found


def predict_rules(settings: ServerSettings) -> PredictRules:
    """The limits of a call."""
    server = settings.server
    return PredictRules(
        inputs=InputLimits(server.max_image_bytes, server.max_statement_chars, server.texts, server.max_address_chars),
        stream=StreamRules(server.max_stream_outstanding),
        max_deadline_seconds=server.max_deadline_seconds,
    )


def capacity(settings: ServerSettings) -> Capacity:
    """The limits of what a model has accepted and not answered."""
    return Capacity(settings.server.max_waiting_requests, settings.server.max_waiting_bytes)


def held_rules(settings: ServerSettings) -> HeldRules:
    """The limits of what is held for callers."""
    return HeldRules(
        settings.server.max_waiting_bytes, settings.server.max_message_bytes, settings.server.upload_seconds
    )


def advertised_limits(settings: ServerSettings) -> status_pb2.Limits:
    """The limits that GetServerStatus reports."""
    server = settings.server
    limits = status_pb2.Limits(
        max_message_bytes=server.max_message_bytes,
        max_image_bytes=server.max_image_bytes,
        max_image_pixels=server.max_image_pixels,
        max_image_side_pixels=server.max_image_side_pixels,
        max_statements=entailment.MAX_STATEMENTS,
        max_statement_chars=server.max_statement_chars,
        max_addresses=MAX_ADDRESSES,
        max_address_chars=server.max_address_chars,
        max_stream_items=convert.MAX_STREAM_ITEMS,
        max_stream_outstanding=server.max_stream_outstanding,
        max_image_scans=server.max_image_scans,
        max_image_memory_bytes=server.max_image_memory_bytes,
        pictures=server.pictures,
    )
    limits.max_image_time.FromNanoseconds(int(server.max_image_seconds * 1e9))
    limits.max_deadline.FromNanoseconds(int(server.max_deadline_seconds * 1e9))
    return limits


def server_arguments(settings: ServerSettings) -> channel_arguments.Arguments:
    """Channel arguments of the public server."""
    server = settings.server
    times = channel_arguments.ConnectionTimes(server.max_connection_age_seconds, server.max_connection_idle_seconds)
    connections = descriptors.max_connections(descriptors.raise_limit())
    return channel_arguments.public_arguments(server.max_message_bytes, connections, times)


@dataclass(frozen=True, slots=True)
class _SharedDependencies:
    """The dependencies that all models share."""

    clock: Clock
    emit: Emit
    drain: Drain
    cpu_fallback_file: CpuFallbackFile
    device_shares: DeviceShares
    device_memories: DeviceMemories
    runners: RunnerStarter
    is_memory_tight: Callable[[], bool]
    warn: Callable[[str], None]


def _model_options(settings: ServerSettings, model: ModelSettings, shared: _SharedDependencies) -> ModelOptions:
    server, runner = settings.server, settings.runner
    spec = runner_spec(settings, model)

    return ModelOptions(
        model=model.name,
        task=model.task,
        rules=SlotRules(
            model=model.name,
            device=DeviceRules(model.device, allow_cpu_fallback=model.cpu_fallback == "allow"),
            respawn=RespawnRules(runner.respawn_first_seconds, runner.respawn_cap_seconds, runner.respawn_give_up),
            standby=runner.standby,
        ),
        precision="" if model.precision == "auto" else model.precision,
        cpu_fallback_file=shared.cpu_fallback_file,
        node=settings.node_name,
        state_dir=Path(settings.state_dir),
        clock=shared.clock,
        emit=shared.emit,
        drain=shared.drain,
        capacity=capacity(settings),
        device_shares=shared.device_shares,
        device_memories=shared.device_memories,
        interactive_share=settings.scheduling.interactive_share,
        limits=LimitRules(runner.min_timeout_seconds, runner.limit_factor, runner.prepare_timeout_seconds),
        threads=runner.threads,
        max_call_rows=runner.max_call_rows,
        max_call_seconds=runner.max_call_seconds,
        pictures=_picture_rules(server),
        poison_seconds=server.poison_seconds,
        self_test=TASK_APIS[model.task].self_test,
        self_test_seconds=server.self_test_seconds,
        make_process=lambda listener: RunnerProcess(spec, listener, partial(shared.runners.take, model=model.name)),
        prepare_process=lambda: shared.runners.prepare(spec),
        engines=list_engines(settings),
        is_memory_tight=shared.is_memory_tight,
        samples=_sample_files(settings, model.name, shared.warn),
    )


def _sample_files(settings: ServerSettings, model: str, warn: Callable[[str], None]) -> SampleFiles | None:
    limit = settings.server.keep_samples
    samples = SampleFiles(Path(settings.state_dir) / SAMPLES_FOLDER / model, limit, warn)
    if limit:
        return samples
    samples.remove_all()
    return None


def _picture_rules(server: ServerSection) -> runner_pb2.PictureRules:
    return runner_pb2.PictureRules(
        max_pixels=server.max_image_pixels,
        max_side_pixels=server.max_image_side_pixels,
        max_scans=server.max_image_scans,
        max_seconds=server.max_image_seconds,
        max_memory_bytes=server.max_image_memory_bytes,
        as_stock=server.pictures == "as_stock",
        reduced=server.reduced_decoding,
    )
