"""The Go client: it is made from the contracts of today, and its own tests pass where there is a Go toolchain."""

import os
import re
import shutil
import subprocess

import pytest

from dev.scripts.go_client import CLIENT, PROTOS, SERVICE_CONFIG, describe_sources

MIN_GO = (1, 26)  # as in clients/go/go.mod


def test_the_go_client_is_made_from_the_contracts_of_today() -> None:
    """If this fails: `make clients-go-stubs`, which needs Go."""
    assert (CLIENT / "gen/sources.sha256").read_text(encoding="utf-8") == describe_sources()
    assert (CLIENT / SERVICE_CONFIG).read_bytes() == (PROTOS / SERVICE_CONFIG).read_bytes()


@pytest.mark.timeout(600)  # a first build takes a minute
def test_the_go_clients_own_tests_pass() -> None:
    """On a fake server in the same process; the race detector runs in `make clients-go`."""
    go = shutil.which("go")
    if go is None or _find_version(go) < MIN_GO:
        pytest.skip(f"Go {MIN_GO[0]}.{MIN_GO[1]} or newer is not on the path: the Go client was not tested")
    flags = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath", "CGO_ENABLED": "0"}
    command = [go, "test", "./..."]
    done = subprocess.run(
        command, cwd=CLIENT, env=os.environ | flags, capture_output=True, text=True, timeout=590, check=False
    )
    assert (done.returncode, done.stdout + done.stderr if done.returncode else "") == (0, "")


def _find_version(go: str) -> tuple[int, int]:
    """The version of a Go toolchain; (0, 0) if it names none."""
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=False)
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
