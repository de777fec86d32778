"""Servers for the tests of this folder."""

from tests.stack.fixtures import make_stack, shared_stack, stack

__all__ = ["make_stack", "shared_stack", "stack"]
