"""The servers of `make bench-peers` and `make bench-served`: started, called, and their CPU time read."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dev.bench.peer_programs import engine
from dev.harness.answers import Question
from dev.harness.loadgen import Group, play
from dev.harness.process import ROOT, free_port, list_runners
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.oip.v2 import open_inference_pb2 as oip

HOTSLOT, BARE, MLSERVER, LITSERVE, TRITON = "hotslot", "bare grpc.aio", "MLServer", "LitServe", "Triton"
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
TRITON_FOLDER = ROOT / ".tools" / "triton"
MAX_BYTES = 32 << 20
SERVERS = (HOTSLOT, BARE, MLSERVER, LITSERVE, TRITON)
START_SECONDS = 60.0
INFER, INFER_STREAM = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
HOTSLOT_SETTINGS = """
state_dir = "{folder}/state"
[[models]]
name = "{model}"
[server]
port = {port}
metrics_port = 0
drain_delay_seconds = 0
{more}
"""


@dataclass(frozen=True, slots=True)
class Batches:
    """How the peers gather batches around the demo model's engine."""

    bundle: Path
    rows: int
    seconds: float  # that a batch waits for further requests
    engine_core: int | None = None  # where the thread computes; with the server if None

    def environment(self) -> dict[str, str]:
        """As the programs read it."""
        core = {} if self.engine_core is None else {engine.CORE: str(self.engine_core)}
        rows, seconds = str(self.rows), str(self.seconds)
        return {engine.BUNDLE: str(self.bundle), engine.BATCH_ROWS: rows, engine.BATCH_SECONDS: seconds, **core}


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of a server's processes."""

    server: float
    runners: float = 0.0  # of hotslot, beside the server's own

    @property
    def total(self) -> float:
        """Of all its processes."""
        return self.server + self.runners

    def __sub__(self, before: "Cpu") -> "Cpu":
        return Cpu(self.server - before.server, self.runners - before.runners)

    def __add__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.server + other.server, self.runners + other.runners)


@dataclass(slots=True)
class Server:
    """A server that runs on one core."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    _known: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def measure_cpu(self) -> Cpu:
        """CPU seconds so far, of all processes that it has."""
        spent = {}
        first = psutil.Process(self.process.pid)
        for process in (first, *first.children(recursive=True)):
            known = self._known.setdefault(process.pid, process)
            with contextlib.suppress(psutil.Error):
                spent[process.pid] = sum(known.cpu_times()[:2])
        own = spent.pop(self.process.pid, 0.0)
        return Cpu(own, sum(spent.values())) if self.name == HOTSLOT else Cpu(own + sum(spent.values()))

    def pin_runners(self, core: int) -> None:
        """Move the runners of hotslot to a core."""
        for runner in list_runners(psutil.Process(self.process.pid)):
            for task in Path(f"/proc/{runner.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {core})


def group_for(name: str, asked: Sequence[Question], mode: str, clients: int) -> Group:
    """Callers of a closed loop with this server's contract.

    Args:
        name: of the server.
        asked: pictures, each with one statement.
        mode: "unary" or "stream".
        clients: callers, or streams with one item outstanding each.
    """
    deadline = 30.0
    if name in (HOTSLOT, BARE):
        own = [pb.PredictRequest(image=pb.Image(content=one.image), statements=one.statements) for one in asked]
        return Group("calls", own, mode, clients, deadline=deadline)
    if name == LITSERVE:
        mark = uuid.uuid4().hex
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        forms = [_form(one, mark) for one in asked]
        return Group("calls", forms, "http", clients, method="/predict", metadata=headers, deadline=deadline)
    tensors = [_tensors(one, is_raw=name == TRITON) for one in asked]
    method, mode = (INFER_STREAM, "plain") if mode == "stream" else (INFER, "unary")
    return Group("calls", tensors, mode, clients, method=method, deadline=deadline)


def has_streams(name: str) -> bool:
    """Whether one call of this server carries several items."""
    return name in (HOTSLOT, BARE, MLSERVER)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as `sys.exit` does, so that what it has started is ended, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def with_this_process(command: Sequence[str]) -> list[str]:
    """The command of a process that is killed when this one ends in any way."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


@contextlib.contextmanager
def running(
    name: str, folder: Path, core: int | None, batches: Batches | None = None, more: str = ""
) -> Iterator[Server]:
    """A server that answers, on one core, ended afterwards with all its processes.

    Args:
        name: of the server.
        folder: an existing one for its files; for hotslot with the state folder `state`.
        core: of all its processes; None for any.
        batches: around the demo model's engine; without, an engine that does nothing.
        more: further settings of hotslot.
    """
    port = free_port()
    command, environment = _command(name, port, folder, batches, more)
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")) if name in (HOTSLOT, BARE) else (str(ROOT),))
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            with_this_process([*pinned, *command]), cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )  # fmt: skip
    server = Server(name, port, process)
    try:
        _wait_answers(server, folder)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _command(
    name: str, port: int, folder: Path, batches: Batches | None, more: str
) -> tuple[list[str], Mapping[str, str]]:
    environment = {} if batches is None else batches.environment()
    programs = "dev.bench.peer_programs"
    match name:
        case "hotslot":
            model = "null" if batches is None else "shapes"
            text = HOTSLOT_SETTINGS.format(folder=folder, model=model, port=port, more=more)
            settings = folder / "hotslot.toml"
            settings.write_text(text, encoding="utf-8")
            return [sys.executable, "-m", "inference.server.main"], {"HOTSLOT_CONFIG": str(settings)}
        case "bare grpc.aio":
            return [sys.executable, "-m", f"{programs}.bare", str(port)], environment
        case "LitServe":
            return [str(PEERS_PYTHON), "-m", f"{programs}.litserve_app", str(port)], environment
        case "MLServer":
            place = _write_mlserver(folder / "mlserver", port, batches)
            return [str(PEERS_PYTHON.with_name("mlserver")), "start", str(place)], environment
        case _:
            return _triton(folder / "triton", port)


def _write_mlserver(folder: Path, port: int, batches: Batches | None) -> Path:
    folder.mkdir(exist_ok=True)
    ports = {"grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
    settings = {"parallel_workers": 0, "host": "127.0.0.1", "grpc_max_message_length": MAX_BYTES, **ports}
    settings["metrics_dir"] = str(folder / "metrics")
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    model: dict[str, object] = {"name": "demo", "implementation": "dev.bench.peer_programs.mlserver_model.Model"}
    if batches is not None:
        model |= {"max_batch_size": batches.rows, "max_batch_time": batches.seconds}
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return folder


_TRITON_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "image" data_type: TYPE_UINT8 dims: [ -1 ] }, { name: "statement" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


def _triton(folder: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
    version = folder / "models" / "demo" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(_TRITON_CONFIG, encoding="utf-8")
    program = ROOT / "dev" / "bench" / "peer_programs" / "triton_model.py"
    (version / "model.py").write_bytes(program.read_bytes())
    home = TRITON_FOLDER / "pytriton" / "tritonserver"
    stub = (
        home
        / "python_backend_stubs"
        / f"{sys.version_info.major}.{sys.version_info.minor}"
        / "triton_python_backend_stub"
    )
    backends = folder / "backends" / "python"
    backends.mkdir(parents=True, exist_ok=True)
    for one in (*(home / "backends" / "python").iterdir(), stub):
        link = backends / one.name
        link.unlink(missing_ok=True)
        link.symlink_to(one)
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}", "--grpc-address=127.0.0.1",
        "--allow-http=false", "--allow-metrics=true", f"--metrics-port={free_port()}", "--metrics-address=127.0.0.1",
        "--allow-gpu-metrics=false", "--exit-timeout-secs=2",
    ]  # fmt: skip
    libraries = [str(TRITON_FOLDER / "nvidia_pytriton.libs"), str(Path(sys.base_prefix) / "lib")]
    numpy = sysconfig.get_path("purelib")  # for the program of the model
    return command, {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PEER_NUMPY": numpy}


def _wait_answers(server: Server, folder: Path) -> None:
    picture = ROOT / "examples" / "shapes" / "golden" / "shapes-001.png"
    group = group_for(server.name, [Question(picture.read_bytes(), ("a cat",))], "unary", 1)
    began, seen = time.monotonic(), ""
    while time.monotonic() - began < START_SECONDS:
        if server.process.poll() is not None:
            break
        played = play(server.address, [group], 0.2, folder)
        # A refusal of the request itself is an answer, too: the model is loaded.
        if any(one.is_answer or one.code == "INVALID_ARGUMENT" for one in played.outcomes):
            return
        seen = next((f"{one.code}: {one.detail}" for one in played.outcomes), "")
    log = (folder / f"{server.name}.log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{server.name} does not answer ({seen}): {log}")


def _tensors(asked: Question, *, is_raw: bool) -> bytes:
    """A ModelInfer request of two tensors: of one element each, or of raw bytes."""
    request = oip.ModelInferRequest(model_name="demo")
    for name, element in (("image", asked.image), ("statement", asked.statements[0].encode())):
        if is_raw:
            request.inputs.add(name=name, datatype="UINT8", shape=[len(element)])
            request.raw_input_contents.append(element)
        else:
            tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(element)
    return request.SerializeToString()


def _form(asked: Question, mark: str) -> bytes:
    """A form with a file and a text."""
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="picture"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    text = f'\r\n--{mark}\r\nContent-Disposition: form-data; name="statement"\r\n\r\n{asked.statements[0]}'
    return head.encode() + asked.image + text.encode() + f"\r\n--{mark}--\r\n".encode()
