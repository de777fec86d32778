"""The console's calls to a server whose certificate, token and address are replaced while both run."""

from pathlib import Path

import grpc
import pytest

from console.upstream import CallFailed, ServerAddress, Upstream
from dev.harness.certificates import Authority
from hotslot.entailment.v1 import entailment_pb2
from tests.cli.scripted_server import ScriptedServer


def make_server(folder: Path) -> tuple[ScriptedServer, ServerAddress]:
    """A server with a certificate of its own, and how it is called; that certificate alone is trusted."""
    pair = Authority(folder).sign("server", ("DNS:shop.example",))
    chain = pair.certificate.read_bytes()
    server = ScriptedServer(credentials=grpc.ssl_server_credentials([(pair.key.read_bytes(), chain)]))
    return server, ServerAddress(server.address, chain, name="shop.example", is_secure=True, token=f"of-{folder.name}")


async def test_a_renewed_certificate_is_trusted_from_the_next_call_on(tmp_path: Path) -> None:
    """And the renewed token is sent; calls that fail meanwhile say so."""
    (old, old_address), (new, new_address) = make_server(tmp_path / "old"), make_server(tmp_path / "new")
    in_files = [old_address]
    upstream = Upstream(lambda: in_files[-1], tmp_path)
    try:
        await upstream.models()
        old.stop()
        with pytest.raises(CallFailed, match="no server answers"):
            await upstream.models()

        in_files.append(new_address)
        with pytest.raises(CallFailed, match="no server answers"):
            await upstream.models()
        await upstream.predict(entailment_pb2.PredictRequest(statements=["yes it is"]))
        assert new.authorizations == ["Bearer of-new"]
    finally:
        await upstream.close()
        new.stop()
