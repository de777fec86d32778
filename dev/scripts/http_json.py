"""What the API over HTTP and JSON needs, made from the contracts by `make protos`.

`deploy/envoy/hotslot.binpb` is the descriptor set by which Envoy translates, with the messages of error details in it.
`docs/openapi.json` describes the same paths for people and generators of clients.
"""

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from dev.scripts.openapi import describe_api, to_text

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
DESCRIPTORS = Path("deploy/envoy/hotslot.binpb")
OPENAPI = Path("docs/openapi.json")
CONTRACTS = ("entailment", "address", "status")
_DETAILS = "google/rpc/error_details.proto"  # packed in errors; no contract imports it


def build() -> Mapping[Path, bytes]:
    """The files and their contents."""
    descriptors = compile_contracts(with_comments=False)
    described = describe_api(compile_contracts(with_comments=True))
    return {DESCRIPTORS: descriptors.SerializeToString(deterministic=True), OPENAPI: to_text(described).encode()}


def compile_contracts(*, with_comments: bool) -> descriptor_pb2.FileDescriptorSet:
    """The public contracts with all that they import."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in _contract_files())
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set.binpb"
        command: list[Any] = [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", PROTOS, "-I", sysconfig.get_path("purelib")),
            *(f"--descriptor_set_out={target}", "--include_imports"),
            *(["--include_source_info"] if with_comments else []),
            *sources,
            _DETAILS,
        ]
        subprocess.run([str(word) for word in command], check=True, timeout=120)
        return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def _contract_files() -> Iterator[Path]:
    for name in CONTRACTS:
        yield from PROTOS.glob(f"hotslot/{name}/**/*.proto")
