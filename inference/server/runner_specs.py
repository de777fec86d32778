"""How the runners of a model are started, from the settings. Imports little; see `runner_client/start`."""

from common.engine_files import ENGINES
from common.paths import KERNELS_FOLDER
from common.settings import ModelSettings
from inference.server.runner_client.start import RunnerSpec
from inference.server.settings import ServerSettings

# Added to the inherited value. The kernel ends the process with the largest sum of its memory and so many thousandths
# of the container's: a conversion, which has 1000, before a process that does not serve, and that before the active
# runner, unless they differ by more than half of the container's memory.
CANDIDATE_OOM_SCORE = 500


def runner_spec(settings: ServerSettings, model: ModelSettings) -> RunnerSpec:
    """The specification of a model's runners; they import the engine of its task before any load."""
    runner = settings.runner
    built_in = next((files.engine for files in ENGINES if files.task is model.task), "")
    return RunnerSpec(
        engine=next(iter(runner.extra_engines), built_in),
        extra_engines=runner.extra_engines,
        device_policy=model.device,
        silence_seconds=runner.silence_seconds,
        start_seconds=runner.start_seconds,
        load_stall_seconds=runner.load_stall_seconds,
        retire_seconds=runner.retire_seconds,
        prepare_processes=runner.prepare_processes,
        prepare_memory_bytes=runner.prepare_memory_bytes,
        prepare_timeout_seconds=runner.prepare_timeout_seconds,
        kernels=str(settings.state_dir.absolute() / KERNELS_FOLDER) if runner.compiled_kernels else "",
        oom_score_adj=CANDIDATE_OOM_SCORE,
        # Extra engines are any code: it may start threads when it is imported, or not use torch.
        fork=runner.standby and runner.fork_server and not runner.extra_engines and bool(built_in),
    )
