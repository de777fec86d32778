"""Generates the code beside the .proto files, and what HTTP and JSON need: `python -m dev.scripts.protos`."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from dev.scripts import http_json

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"


class GenerationFailed(RuntimeError):
    """protoc failed; has its output."""


def generate(target: Path) -> list[Path]:
    """Write the Python modules and type stubs of all protos under `target`.

    Returns:
        The written files, relative to `target`, sorted.

    Raises:
        GenerationFailed: a .proto file is wrong, or a plugin is not installed.
    """
    plugins = Path(sysconfig.get_path("scripts"))
    packages = Path(sysconfig.get_path("purelib"))  # holds google/rpc/*.proto
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("hotslot/**/*.proto"))
    services = [name for name in sources if "\nservice " in (PROTOS / name).read_text(encoding="utf-8")]
    includes = ["-I", str(PROTOS), "-I", str(packages)]
    _protoc(
        *includes,
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        *sources,
    )
    _protoc(
        *includes,
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *services,
    )
    return sorted(path.relative_to(target) for path in target.glob("hotslot/**/*_pb2*.py*") if path.suffix != ".pyc")


def _protoc(*arguments: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    done = subprocess.run(command, cwd=PROTOS, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise GenerationFailed(done.stderr.strip())


if __name__ == "__main__":
    for stale in PROTOS.glob("hotslot/**/*_pb2*.py*"):
        stale.unlink()
    written = generate(PROTOS)
    sys.stdout.write(f"{len(written)} files under {os.path.relpath(PROTOS)}\n")
    for path, content in http_json.build().items():
        (ROOT / path).write_bytes(content)
        sys.stdout.write(f"{path}\n")
