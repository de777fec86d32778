"""`make backfill`: runs examples/ray_backfill.py and examples/spark_backfill.py here, against two servers.

In an environment of its own with Ray, PySpark and the client. While each runs, one of the servers is restarted; then it
is run a second time, which must do nothing. Every picture must have exactly one line.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from dev.conformance.situations import PICTURES, restart
from dev.harness.process import ROOT, free_port
from dev.harness.stack import Stack

ENVIRONMENT = ROOT / ".bench" / "backfill" / "env"
UV = ROOT / ".tools" / "uv" / "bin" / "uv"
STATEMENTS = ("there is a square", "there are two red circles")
LIMIT_SECONDS = 600
SCRIPT = {"salt": "backfill", "row_seconds": 0.002}


def main() -> int:
    """Run both; 0 if every picture has one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--only", choices=("ray", "spark"))
    options = parser.parse_args()
    make_environment()
    failed = False
    with tempfile.TemporaryDirectory(prefix="hotslot-") as name:
        folder = Path(name)
        make_pictures(folder / "pictures", options.pictures)
        with make_server(folder / "one") as first, make_server(folder / "two") as second:
            address = f"ipv4:{first.address},{second.address}"
            for tool in ("ray", "spark") if options.only is None else (options.only,):
                failed |= not run(tool, folder, address, second, options.pictures)
    return 1 if failed else 0


def make_environment() -> None:
    """Ray, PySpark, and the client of this checkout."""
    python = str(ENVIRONMENT / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, ENVIRONMENT], check=True)
    wanted = ["ray[data]", "pyspark", str(ROOT / "clients" / "python")]
    variables = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *wanted], check=True, env=variables)


def make_pictures(folder: Path, count: int) -> None:
    """So many files; the scripted engine takes any bytes for a picture."""
    folder.mkdir()
    picture = (PICTURES / "two-red-circles.png").read_bytes()
    for number in range(count):
        (folder / f"{number:06}.png").write_bytes(picture + str(number).encode())


def make_server(folder: Path) -> Stack:
    """A server with a scripted engine."""
    folder.mkdir()
    return Stack(folder, server={"port": free_port(), "drain_delay_seconds": 0.5}, script=SCRIPT)


def run(tool: str, folder: Path, address: str, second: Stack, count: int) -> bool:
    """Run one of the examples twice, the first time with a restart of a server; whether every picture has one line."""
    results = folder / f"results-{tool}"
    restarted = threading.Thread(target=restart_when_begun, args=(results, second), daemon=True)
    restarted.start()
    began = time.monotonic()
    printed = call(tool, folder, results, address)
    seconds = time.monotonic() - began
    restarted.join()
    again = call(tool, folder, results, address)
    rows = [json.loads(line) for path in results.glob("part-*.jsonl") for line in path.read_text().splitlines()]
    pictures = Counter(row["picture"] for row in rows)
    is_whole = len(pictures) == count and set(pictures.values()) == {1} and all("labels" in row for row in rows)
    sys.stdout.write(
        f"{tool}: {printed}; {seconds:.0f} s, one server restarted meanwhile; second run: {again}; "
        f"{len(rows)} lines for {len(pictures)} pictures: {'good' if is_whole else 'WRONG'}\n"
    )
    return is_whole


def restart_when_begun(results: Path, stack: Stack) -> None:
    """Drain and restart a server when the first part is written."""
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until and not list(results.glob("part-*.jsonl")):
        time.sleep(0.05)
    restart(stack, signal.SIGTERM)


def call(tool: str, folder: Path, results: Path, address: str) -> str:
    """Run an example; its last line."""
    program = ROOT / "examples" / f"{tool}_backfill.py"
    arguments = [folder / "pictures", results, *STATEMENTS, "--address", address, "--workers", "2"]
    command = [ENVIRONMENT / "bin" / "python", program, *arguments]
    if tool == "spark":
        helper = ROOT / "examples" / "backfill_parts.py"
        command = [
            ENVIRONMENT / "bin" / "spark-submit",
            "--master",
            "local[2]",
            "--py-files",
            helper,
            program,
            *arguments,
        ]
    path = os.pathsep.join((str(ENVIRONMENT / "bin"), os.environ["PATH"]))
    variables = {**os.environ, "PATH": path, "PYSPARK_PYTHON": str(ENVIRONMENT / "bin" / "python")}
    variables["RAY_raylet_start_wait_time_s"] = "120"  # this machine is busy
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, command)), env=variables, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:])
        raise SystemExit(f"{tool} ended with {done.returncode}")
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    assert shutil.which("java"), "Spark needs Java"
    sys.exit(main())
