"""Collected only where `make test-kserve` has installed KServe's SDK: 300 MB are no part of `make test`."""

from dev.harness.foreign_client import KSERVE, find_client
from tests.stack.fixtures import make_stack, shared_stack, stack

__all__ = ["make_stack", "shared_stack", "stack"]
collect_ignore = [] if find_client(KSERVE).exists() else ["test_kserve_client.py"]
