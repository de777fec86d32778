"""torch's allocator takes GPU memory in segments that grow, unless the operator has set it up."""

import subprocess
import sys

import pytest

from inference.server.runner_client.start import runner_environment

PROGRAM = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
CHOICE = "max_split_size_mb:512"


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An operator who has set nothing."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def settings_of_torch() -> str:
    """What a runner's torch is set up with, as torch says it."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=runner_environment())
    return str(done.stdout).strip()


def test_segments_grow(unset: pytest.MonkeyPatch) -> None:
    """As torch says itself."""
    del unset
    assert settings_of_torch() == "expandable_segments:True"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_operators_choice_is_kept(unset: pytest.MonkeyPatch, name: str) -> None:
    """Under the older name of the variable too."""
    unset.setenv(name, CHOICE)
    assert {key: value for key, value in runner_environment().items() if "ALLOC_CONF" in key} == {name: CHOICE}
