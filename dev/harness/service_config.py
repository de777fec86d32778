"""The service config that ships with the protos."""

import json
from typing import Any

from dev.harness.process import ROOT

PATH = ROOT / "protos" / "hotslot" / "service_config.json"


def read_service_config(*, is_waiting: bool = False) -> dict[str, Any]:
    """The service config; `is_waiting`: without a server, calls do not fail but wait for one."""
    config: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    if is_waiting:
        for methods in config["methodConfig"]:
            methods["waitForReady"] = True
    return config
