"""hotslot as a user has it: the wheel in an environment of its own, a settings file and models in any folder."""

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from dev.harness.answers import Question
from dev.harness.control import CHANNEL_OPTIONS
from dev.harness.process import free_port
from dev.harness.waiting import eventually
from hotslot.entailment.v1 import entailment_pb2
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub
from tests.install.environments import ROOT, Environment

SHAPES = ROOT / "examples" / "shapes"
WAIT_SECONDS = 60.0
SETTINGS = """
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
hub_folder = "hub"
golden = "golden"
poll_seconds = 0.5
observe = {{ window_seconds = 1, max_seconds = 60, keep_warm_seconds = 0 }}
"""


class User:
    """A folder of the user's, and the commands that are typed there."""

    def __init__(self, folder: Path, environment: Environment) -> None:
        self.folder = folder
        self.environment = environment
        shutil.copytree(SHAPES / "golden", folder / "golden")
        for revision in ("v1.0.0", "v1.1.0"):
            shutil.copytree(SHAPES / revision, folder / revision)
        port = free_port()
        (folder / "hotslot.toml").write_text(SETTINGS.format(port=port))
        self._address = f"127.0.0.1:{port}"

    def hotslot(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one command."""
        return self.environment.run(self.environment.hotslot, *words, folder=self.folder)

    def revision(self) -> str:
        """The revision that answers a question about a picture."""
        done = self.hotslot("predict", "golden/shapes-001.png", "there is a triangle", "--json")
        assert done.returncode == 0, done.stderr
        row: dict[str, Any] = json.loads(done.stdout)
        assert [result["label"] for result in row["results"]] == ["yes"]
        return str(row["served_by"]["revision"])

    def wait_for(self, revision: str) -> None:
        """Return when a revision answers the command; a client in this process waits, which costs less."""
        asked = Question((SHAPES / "golden" / "shapes-001.png").read_bytes(), ("there is a triangle",))

        def look() -> bool:
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Predict(asked.request(), timeout=WAIT_SECONDS, wait_for_ready=True)
                assert [result.label for result in answer.results] == [entailment_pb2.LABEL_YES]
                return bool(answer.served_by.revision == revision)
            return False

        try:
            with grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                stub = EntailmentServiceStub(channel)
                eventually(look, WAIT_SECONDS, f"answers of {revision}", pause=0.2)
            assert self.revision() == revision
        except AssertionError as error:
            error.add_note(self.log())
            raise

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`hotslot serve`, until the block ends."""
        with (self.folder / "log").open("wb") as log:
            stack = subprocess.Popen(
                [str(self.environment.hotslot), "serve"],
                cwd=self.folder,
                env=self.environment.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                yield stack
            finally:
                stack.send_signal(signal.SIGTERM)
                stack.wait(30)

    def log(self) -> str:
        """The end of what the stack said."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_wheel_serves_and_updates_a_user_s_model(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """Paths of hotslot.toml mean the folder in which `hotslot serve` is typed; nothing comes from the source tree."""
    environment.install(wheel)
    # Site-packages come after the standard library in every process, the conversion among them.
    (environment.site_packages / "json.py").write_text("raise SystemExit('a foreign module was run')\n")
    (tmp_path / "user").mkdir()
    user = User(tmp_path / "user", environment)
    brought = user.hotslot("bundle", "import", "v1.0.0", "--model", "shapes")
    assert brought.returncode == 0, brought.stderr
    with user.serving() as stack:
        user.wait_for("v1.0.0")
        assert user.hotslot("hub", "add", "v1.1.0", "v1.1.0").returncode == 0
        user.wait_for("v1.1.0")
    assert stack.returncode == 0, user.log()
    assert {entry.name for entry in user.folder.iterdir()} == {
        "golden",
        "hotslot.toml",
        "hub",
        "log",
        "state",
        "v1.0.0",
        "v1.1.0",
    }
