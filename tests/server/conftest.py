"""Servers for the tests of this folder."""

from tests.dev.tools.conftest import go_healthcheck, go_tools, grpcurl
from tests.stack.fixtures import make_stack, shared_stack, stack

__all__ = ["go_healthcheck", "go_tools", "grpcurl", "make_stack", "shared_stack", "stack"]
