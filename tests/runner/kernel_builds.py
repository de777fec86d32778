"""Builds of compiled kernels, for tests."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.runner.engines.kernels import load_kernels

HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_kernels = pytest.mark.skipif(
    not HAS_COMPILER or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"},
    reason="there is no C++ compiler, or the processor has no AVX2",
)
Events = list[tuple[str, dict[str, Any]]]


def load_into(folder: Path) -> Events:
    """Load the kernels of a folder; returns the events with their fields."""
    events: Events = []
    load_kernels(folder, lambda name, **fields: events.append((name, fields)))
    return events
