"""Runs the clients of all languages against a real server: `python -m dev.conformance`."""
