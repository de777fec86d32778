"""Collected only where `make test-console` has put Playwright on the path: a browser is no part of `make test`."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("playwright") else ["test_console.py"]
