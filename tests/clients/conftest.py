"""A server and the Go tools for the tests of this folder."""

from tests.stack.fixtures import make_stack, shared_stack, stack
from tests.tools.conftest import go_healthcheck, go_tools, grpcurl

__all__ = ["go_healthcheck", "go_tools", "grpcurl", "make_stack", "shared_stack", "stack"]
