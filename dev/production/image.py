"""`make test-image`: runs the image as a hardened platform would, and writes its part of docs/deploy-report.json."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import grpc

from dev.harness.process import ROOT, free_port
from dev.harness.waiting import eventually
from dev.production.report import write_part
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

IMAGE, NAME = "hotslot", f"hotslot-test-{free_port()}"
PODMAN = shutil.which("podman") or "/usr/bin/podman"
UID = "123456"  # arbitrary, as OpenShift gives; the group is root's
SHAPES = ROOT / "examples" / "shapes"
READY_SECONDS, MEMORY, CPUS = 120.0, "3g", "1"
HARDENED = (
    *("--runtime=runc", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"),
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:size=64m", "--cap-drop=all"),
    *("--security-opt=no-new-privileges", f"--user={UID}:0", f"--memory={MEMORY}", f"--cpus={CPUS}"),
)


def main() -> int:
    """Run it; 1 if something is not as it must be."""
    port = free_port()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hotslot-image-") as scratch:
        hub = Path(scratch) / "hub"
        _prepare(Path(scratch), hub, port)
        try:
            problems = _play(rows, port, Path(scratch), hub)
        finally:
            _podman("rm", "--force", "--time=0", "--volumes", NAME, check=False)
    rows["problems"] = "; ".join(problems) or "none"
    write_part("image", {"rows": rows, "command": "make image test-image"})
    print(json.dumps(rows, indent=1))
    return 1 if problems else 0


def _prepare(scratch: Path, hub: Path, port: int) -> None:
    hub.mkdir()
    scratch.chmod(0o755)
    settings = f"""
[[models]]
name = "shapes"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 2
[updater]
metrics_port = -1
[updater.models.shapes]
hub_folder = "/hub"
poll_seconds = 1
golden = "/golden"
observe = {{ window_seconds = 1, max_seconds = 60, min_answers = 5, keep_warm_seconds = 1 }}
"""
    (scratch / "hotslot.toml").write_text(settings, encoding="utf-8")


def _play(rows: dict[str, Any], port: int, scratch: Path, hub: Path) -> list[str]:
    problems = []
    rows["baked model, copied into an empty volume as in a pod"] = _copy_baked(scratch / "state")
    mounts = [f"--volume={scratch / 'hotslot.toml'}:/etc/hotslot/hotslot.toml:ro", f"--volume={hub}:/hub:ro"]
    mounts.append(f"--volume={SHAPES / 'golden'}:/golden:ro")
    rows["size"] = f"{int(_podman('image', 'inspect', '--format={{.Size}}', IMAGE)) / 1e9:.2f} GB"
    rows["labels"] = _podman("image", "inspect", "--format={{json .Labels}}", IMAGE)
    rows["run with"] = shlex.join(HARDENED)
    begun = time.monotonic()
    _podman("run", "--detach", f"--name={NAME}", *HARDENED, *mounts, IMAGE)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = EntailmentServiceStub(channel)
        first = eventually(lambda: _ask(stub), READY_SECONDS, "the baked model answers", 0.1)
        rows["seconds from start to the first answer"] = round(time.monotonic() - begun, 1)
        rows["first answer by"] = first
        rows["health check in it"] = (
            "exit code 0" if _inside("hotslot", "healthcheck", f"-addr=127.0.0.1:{port}")[0] == 0 else "failed"
        )
        rows["user"] = _inside("id")[1]
        rows["limits it sees"] = _inside("python", "-c", _LIMITS)[1]
        rows["writes outside the state folder"] = "refused" if _inside("touch", "/opt/x")[0] else "possible"
        rows["PID 1"] = _inside("cat", "/proc/1/cmdline")[1].replace("\0", " ")
        rows["orphans that PID 1 reaps"] = _reap()
        rows["SBOM components"] = int(_inside("python", "-c", _COMPONENTS)[1])
        add = [str(Path(sys.executable).parent / "hotslot"), "hub", "add", str(SHAPES / "v1.1.0"), "v1.1.0"]
        subprocess.run([*add, "--model=shapes", f"--hub={hub}"], check=True, capture_output=True, timeout=120)
        published = time.monotonic()
        eventually(lambda: _ask(stub) == "v1.1.0", 240.0, "the published revision answers", 0.1)
        rows["seconds from publishing to the new revision's answer"] = round(time.monotonic() - published, 1)
    begun = time.monotonic()
    _podman("kill", "--signal=TERM", NAME)
    code = int(_podman("wait", NAME, limit=120.0))
    rows["SIGTERM"] = f"exit code {code} after {time.monotonic() - begun:.1f} s"
    if code or rows["health check in it"] != "exit code 0" or rows["writes outside the state folder"] != "refused":
        problems.append(_podman("logs", "--tail=20", NAME))
    return problems


def _copy_baked(state: Path) -> str:
    """Run the init container of the Deployment twice on a volume; returns what the stack then finds in it."""
    manifest = (ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml").read_text(encoding="utf-8")
    found = re.search(r"- sh\n +- -ceu\n +- \|\n((?: {14}.*\n)+)", manifest)
    if found is None:
        raise AssertionError("deployment.yaml has no init container with a script")
    state.mkdir()
    state.chmod(0o777)  # as an emptyDir
    arguments = (*HARDENED, f"--volume={state}:/state", "--entrypoint=sh", IMAGE, "-ceu", textwrap.dedent(found[1]))
    for _ in range(2):
        _podman("run", "--rm", *arguments)
    verify = (*HARDENED, f"--volume={state}:/var/lib/hotslot", "--entrypoint=hotslot", IMAGE, "state", "verify")
    return _podman("run", "--rm", *verify).splitlines()[-1]


_LIMITS = """
from common.cgroup import count_usable_cpus, read_memory
memory = read_memory()
print(f"{memory.total / 2**30:.1f} GiB of memory, {count_usable_cpus()} CPU" if memory else "none")
"""
_COMPONENTS = "import json; print(len(json.load(open('/opt/hotslot/sbom.cdx.json'))['components']))"


def _reap() -> str:
    """An orphan that ends becomes a zombie unless the first process waits for it."""
    _inside("sh", "-c", "(sleep 0.2 &) ; exit 0")
    count = eventually(lambda: "0" if "Z" not in _states() else "", 10.0, "no zombie is left", 0.3)
    return "yes" if count else "no"


def _states() -> str:
    return _inside("sh", "-c", "for p in /proc/[0-9]*/stat; do sed 's/.*) \\(.\\).*/\\1/' $p 2>/dev/null; done; true")[
        1
    ]


def _ask(stub: EntailmentServiceStub) -> str:
    request = pb.PredictRequest(statements=["there are two red circles"])
    request.image.content = (SHAPES / "pictures" / "two-red-circles.png").read_bytes()
    try:
        return str(stub.Predict(request, timeout=10).served_by.revision)
    except grpc.RpcError:
        return ""


def _inside(*command: str) -> tuple[int, str]:
    done = subprocess.run([PODMAN, "exec", NAME, *command], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.strip()


def _podman(*arguments: str, limit: float = 60.0, check: bool = True) -> str:
    done = subprocess.run([PODMAN, *arguments], capture_output=True, text=True, timeout=limit, check=False)
    if check and done.returncode:
        raise AssertionError(f"podman {shlex.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
