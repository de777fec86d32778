"""The package `hotslot-client` as it is installed: from its archive, beside other versions of the contracts."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dev.harness.process import ROOT
from hotslot_client import __version__
from tests.clients.python.scripted_service import Service
from tests.install.environments import Environment

PACKAGE = ROOT / "clients" / "python"
CALL = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
path = "hotslot/entailment/v1/entailment.proto"
contract = descriptor_pb2.FileDescriptorProto(name=path, package="hotslot.entailment.v1")
contract.message_type.add(name="PredictRequest")  # as of another version
status = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc")
for file in (contract, status):
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
import hotslot_client
with hotslot_client.Client(sys.argv[1]) as client:
    print(*client.predict(b"picture", ["a"]).labels, hotslot_client.__file__)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"hotslot", "common", "google"}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, as an index would."""
    folder = tmp_path_factory.mktemp("client")
    _build(PACKAGE, folder, "sdist")
    (archive,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True, timeout=60)  # noqa: S607
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    _build(source, folder, "wheel")
    (found,) = folder.glob("*.whl")
    return found


def _build(source: Path, folder: Path, target: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), "--target", target]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)


def test_it_has_types_contracts_and_the_shared_service_config(wheel: Path) -> None:
    """The service config is the one file of the project, the licence too; nothing of the server is in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        config = archive.read("hotslot_client/service_config.json")
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))

    assert config == (ROOT / "protos" / "hotslot" / "service_config.json").read_bytes()
    assert {"hotslot_client/py.typed", "hotslot_client/_protos/contracts.binpb"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"hotslot_client", f"hotslot_client-{__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in names)
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    required = [line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [name.split(">=")[0] for name in required] == ["grpcio", "protobuf"]


def test_it_calls_from_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Also where another version of the contracts, and of google's, is registered in protobuf's default pool."""
    environment = Environment(tmp_path / "env")
    environment.install(wheel)
    with Service().serve() as service:
        done = environment.run(environment.python, "-c", CALL, service.address)

    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"yes {environment.site_packages}")
    assert second == "google"
