"""The Go tools that tests call; `make tools` builds them, and so does the first test that needs them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUILD_SECONDS = 540


@pytest.fixture(scope="session")
def go_tools() -> Path:
    """Folder of the built tools."""
    done = subprocess.run(
        [str(ROOT / "dev/scripts/tools")], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode:
        pytest.fail(f"the Go tools cannot be built, run `make tools` to see why:\n{done.stderr}", pytrace=False)
    return ROOT / ".tools/bin"


@pytest.fixture(scope="session")
def grpcurl(go_tools: Path) -> Path:
    """The pinned grpcurl."""
    return go_tools / "grpcurl"


@pytest.fixture(scope="session")
def go_healthcheck(go_tools: Path) -> Path:
    """Our own grpc-go health checker, with the flags and exit codes of grpc_health_probe."""
    return go_tools / "healthcheck"
