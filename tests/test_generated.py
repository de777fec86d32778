"""What is generated is committed, and is what the contracts say."""

from pathlib import Path

from dev.scripts import client_protos, http_json
from dev.scripts.protos import PROTOS, generate


def test_generated_code_is_that_of_the_contracts(tmp_path: Path) -> None:
    """Generating again changes no byte and leaves no file over; if this fails: `make protos`."""
    written = generate(tmp_path)
    committed = sorted(
        path.relative_to(PROTOS) for path in PROTOS.glob("hotslot/**/*_pb2*.py*") if path.suffix != ".pyc"
    )
    assert committed == written
    stale = [str(name) for name in written if (tmp_path / name).read_bytes() != (PROTOS / name).read_bytes()]
    assert stale == []


def test_what_http_needs_is_that_of_the_contracts() -> None:
    """The descriptor set of the proxy and the OpenAPI file; if this fails: `make protos`."""
    built = http_json.build()
    assert [str(path) for path, content in built.items() if (http_json.ROOT / path).read_bytes() != content] == []


def test_the_python_client_has_the_contracts(tmp_path: Path) -> None:
    """Its descriptors and stubs are generated anew without a change; if this fails: `make protos`."""
    for name in client_protos.generate(tmp_path):
        assert (tmp_path / name).read_bytes() == (client_protos.TARGET / name).read_bytes(), name


def test_every_contract_is_typed() -> None:
    """Callers' type checkers may read the stubs."""
    assert (PROTOS / "hotslot/py.typed").is_file()
