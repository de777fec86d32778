"""Servers for the tests of this folder."""

from tests.dev.tools.conftest import go_tools
from tests.stack.fixtures import make_stack, shared_stack, stack

__all__ = ["go_tools", "make_stack", "shared_stack", "stack"]
