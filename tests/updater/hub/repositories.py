"""Kinds of repositories as they are published, and what `hotslot hub doctor` prints about each.

python -m tests.updater.hub.repositories > docs/hub-doctor.md
"""

from typing import Any

Rows = list[dict[str, Any]]
