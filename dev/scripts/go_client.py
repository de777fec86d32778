"""Generates what `clients/go` has of the contracts: `python -m dev.scripts.go_client` (`make clients-go-stubs`).

The stubs are committed, because Go's users build modules from their repository as it is. `gen/sources.sha256` names the
files that they were made from, so that a test sees a stale one without a Go toolchain; `--check` generates again and
compares every byte.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
CLIENT = ROOT / "clients/go"
MODULE = "hotslot.io/client-go"
PUBLIC = ("entailment", "address", "status")
SERVICE_CONFIG = "hotslot/service_config.json"
PLUGINS = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")


class GenerationFailed(RuntimeError):
    """protoc, a plugin or Go failed; has its output."""


def proto_names() -> list[str]:
    """The public contracts, relative to `protos`."""
    return [f"hotslot/{name}/v1/{name}.proto" for name in PUBLIC]


def describe_sources() -> str:
    """The content of `gen/sources.sha256`: digest and name of every file that the generated ones are made from."""
    sources = [*(f"protos/{name}" for name in (*proto_names(), SERVICE_CONFIG)), "clients/go/tools/go.mod"]
    rows = [f"{hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}  {name}\n" for name in sources]
    return "".join(rows)


def generate(target: Path) -> None:
    """Write `gen/` and the copy of the service config under `target`.

    Raises:
        GenerationFailed: a contract is wrong, or a tool is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "bin"
        _run(["go", "build", "-o", f"{plugins}/", *PLUGINS], CLIENT / "tools")
        import_paths = ",".join(f"M{name}={MODULE}/gen/{Path(name).parts[1]}/v1" for name in proto_names())
        options = f"module={MODULE},{import_paths}"
        packages = next(path for path in sys.path if (Path(path) / "google/rpc/status.proto").is_file())
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), "-I", packages]
        command += [f"--plugin={plugins / Path(plugin).name}" for plugin in PLUGINS]
        command += [f"--go_out={target}", f"--go_opt={options}", f"--go-grpc_out={target}", f"--go-grpc_opt={options}"]
        _run([*command, *proto_names()], PROTOS)
    shutil.copyfile(PROTOS / SERVICE_CONFIG, _made(target / SERVICE_CONFIG))
    (target / "gen/sources.sha256").write_text(describe_sources(), encoding="utf-8")


def find_stale(made: Path) -> list[str]:
    """The generated files that differ from those under `made`, are missing, or are left over."""
    names = {
        str(path.relative_to(folder))
        for folder in (made, CLIENT)
        for path in [*folder.glob("gen/**/*"), folder / SERVICE_CONFIG]
        if path.is_file()
    }
    return sorted(name for name in names if _content(made / name) != _content(CLIENT / name))


def main() -> int:
    """Generate, or with `--check` compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file would change")
    if not parser.parse_args().check:
        shutil.rmtree(CLIENT / "gen", ignore_errors=True)
        generate(CLIENT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = find_stale(Path(folder))
    if stale:
        sys.stderr.write(f"not what the contracts say, run `make clients-go-stubs`: {', '.join(stale)}\n")
    return 1 if stale else 0


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise GenerationFailed(f"{' '.join(command[:3])}: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
