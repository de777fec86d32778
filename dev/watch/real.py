"""Starts the real Prometheus and Alertmanager, and asks them."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dev.harness.process import free_port

PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"
INTERVAL_SECONDS = 1  # of scrapes and rules
START_SECONDS = 60.0


class RealPrometheus:
    """Prometheus and Alertmanager in a folder of their own; ended with the block.

    Args:
        folder: everything lies in it.
        rules: rule files.
        targets: job → port of its metrics.
        webhook: URL that Alertmanager posts to.
    """

    def __init__(self, folder: Path, rules: Mapping[str, str], targets: Mapping[str, int], webhook: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.port, self.alertmanager_port = free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        for name, text in rules.items():
            (folder / name).write_text(text, encoding="utf-8")
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()
        ]
        every = f"{INTERVAL_SECONDS}s"
        managers = [{"static_configs": [{"targets": [f"127.0.0.1:{self.alertmanager_port}"]}]}]
        config = {
            "global": {"scrape_interval": every, "evaluation_interval": every, "scrape_timeout": every},
            "rule_files": list(rules),
            "alerting": {"alertmanagers": managers},
            "scrape_configs": jobs,
        }
        route = {"receiver": "people", "group_by": ["alertname"], "group_wait": "1s", "group_interval": "2s"}
        people = {"name": "people", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
        manager = {"route": {**route, "repeat_interval": "4h"}, "receivers": [people]}
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        (folder / "alertmanager.yml").write_text(json.dumps(manager), encoding="utf-8")

    def __enter__(self) -> Self:
        """Start both, and wait until they answer."""
        self._start(
            ALERTMANAGER,
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self.alertmanager_port}",
            "--cluster.listen-address=",
        )
        self._start(
            PROMETHEUS,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--rules.alert.resend-delay=2s",
            "--enable-feature=exemplar-storage",
        )
        for port in (self.alertmanager_port, self.port):
            wait_for(lambda port=port: _is_ready(port), "Prometheus and Alertmanager answer", START_SECONDS)  # type: ignore[misc]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        row = self._get("query", query=expression)
        return list(row["data"]["result"])

    def query_range(self, expression: str, seconds: float, step: int = 1) -> list[dict[str, Any]]:
        """The result of a range query over the last seconds."""
        now = time.time()
        row = self._get("query_range", query=expression, start=str(now - seconds), end=str(now), step=str(step))
        return list(row["data"]["result"])

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        rows = self._get("alerts")["data"]["alerts"]
        return {row["labels"]["alertname"] for row in rows if row["state"] == "firing"}

    def _get(self, path: str, **query: str) -> Any:  # noqa: ANN401  JSON
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as page:
            return json.load(page)

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))


def wait_for(is_so: Callable[[], object], what: str, seconds: float) -> float:
    """Wait until something is so; returns how long it took.

    Raises:
        TimeoutError: it never was.
    """
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(what)
        time.sleep(0.25)
    return time.monotonic() - begun


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False
