"""The commands of deploy/ci: each line that a CI file runs is run, on the demo model, against a real stack."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import grpc

from dev.harness.process import ROOT, free_port
from dev.harness.waiting import eventually
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

CI = ROOT / "deploy" / "ci"
FILES = ("gitlab-ci.yml", "github-actions.yml", "Jenkinsfile")
TAGS = {"gitlab-ci.yml": "CI_COMMIT_TAG", "github-actions.yml": "GITHUB_REF_NAME", "Jenkinsfile": "TAG_NAME"}
SHAPES = ROOT / "examples" / "shapes"
HOTSLOT = Path(sys.executable).parent / "hotslot"
_COMMAND = re.compile(r"""(deploy/ci/model\.sh (\w+) [^'\n}]+?)(?:'.*)?$""", re.MULTILINE)
_SETTINGS = """
[[models]]
name = "shapes"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[runner]
threads = 1
[updater]
metrics_port = -1
[updater.models.shapes]
hub_folder = "{hub}"
golden = "{golden}"
poll_seconds = 1
observe = {{ window_seconds = 1, max_seconds = 60, min_answers = 5, keep_warm_seconds = 1 }}
policy = {{ mode = "approve" }}
"""


@dataclass(slots=True)
class PipelineReport:
    """What each file's commands did."""

    ran: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def commands_of(name: str) -> dict[str, str]:
    """The commands of a CI file by step."""
    text = (CI / name).read_text(encoding="utf-8")
    return {step: command.strip() for command, step in _COMMAND.findall(text)}


def check_pipeline(folder: Path) -> PipelineReport:
    """Run the commands of all files: the first one installs a revision, the others the next."""
    report = PipelineReport()
    hub = folder / "hub"
    hub.mkdir()
    with _stack(folder, hub) as environment:
        for name, revision in zip(FILES, ("v1.1.0", "v1.1.1", "v1.1.2"), strict=True):
            report_path = folder / f"{name}.xml"
            values = {"MODEL": "shapes", "MODEL_DIR": str(_trained(folder, revision)), "GOLDEN": str(SHAPES / "golden")}
            values |= {
                "MIN_ACCURACY": "0.85",
                "HUB": str(hub),
                "PORT": str(free_port()),
                "HOTSLOT": str(HOTSLOT),
                TAGS[name]: revision,
            }
            for step, command in commands_of(name).items():
                # The check brings its own settings; the others run where the server's are.
                variables = {**os.environ, **values, **({} if step == "check" else environment)}
                line = command.replace("golden.xml", str(report_path))
                done = subprocess.run(
                    ["/bin/sh", "-c", line],
                    cwd=ROOT,
                    env=variables,
                    capture_output=True,
                    text=True,
                    timeout=400,
                    check=False,
                )
                if done.returncode:
                    report.problems.append(f"{name}: {step}: {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
                    return report
                report.ran.append(f"{name}: `{command}`: {done.stdout.strip().splitlines()[-1]}")
            suite = ET.fromstring(report_path.read_bytes())  # noqa: S314  our own
            report.ran.append(f"{name}: JUnit report: {suite.get('tests')} tests, {suite.get('failures')} failures")
    return report


def _trained(folder: Path, revision: str) -> Path:
    """The demo model as another content: a revision with that of the committed one is not installed."""
    made = folder / f"trained-{revision}"
    shutil.copytree(SHAPES / "v1.1.0", made)
    with (made / "configuration.json").open("a", encoding="utf-8") as file:
        file.write(f"{' ' * int(revision[-1])}\n")
    return made


@contextmanager
def _caller(port: int) -> Iterator[None]:
    """A caller, so that trials see answers."""
    request = pb.PredictRequest(statements=["there are two red circles"])
    request.image.content = (SHAPES / "pictures" / "two-red-circles.png").read_bytes()
    ended = threading.Event()

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = EntailmentServiceStub(channel)
            while not ended.wait(0.1):
                with contextlib.suppress(grpc.RpcError):
                    stub.Predict(request, timeout=10)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _stack(folder: Path, hub: Path) -> Iterator[Mapping[str, str]]:
    """A stack that serves v1.0.0 and asks for approval; yields the environment of an operator."""
    port = free_port()
    config = folder / "hotslot.toml"
    config.write_text(_SETTINGS.format(port=port, hub=hub, golden=SHAPES / "golden"), encoding="utf-8")
    environment = {"HOTSLOT_CONFIG": str(config), "HOTSLOT_STATE_DIR": str(folder / "state")}
    variables = {**os.environ, **environment}
    first = [str(HOTSLOT), "bundle", "import", str(SHAPES / "v1.0.0"), "--model", "shapes"]
    subprocess.run(first, env=variables, check=True, capture_output=True, timeout=200)
    with (folder / "stack.log").open("wb") as log:
        stack = subprocess.Popen([str(HOTSLOT), "serve"], env=variables, stdout=log, stderr=log)
        try:
            check = [str(HOTSLOT), "healthcheck", f"-addr=127.0.0.1:{port}"]
            eventually(
                lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, 120.0, "it serves", 0.5
            )
            with _caller(port):
                yield environment
        finally:
            stack.terminate()
            stack.wait(60)
