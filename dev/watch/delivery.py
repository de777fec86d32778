"""Proof that alerts reach people: the real Prometheus and Alertmanager, `hotslot alert-relay`, and a simulated robot.

    python -m dev.watch.delivery [--outage SECONDS]

The robot first answers with error codes, then is away for a while. One alert fires and ends meanwhile.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dev.harness.chat import DINGTALK, FEISHU, SECRET, WECOM, SimulatedChat, simulated_chat
from dev.harness.process import free_port
from dev.watch.real import RealPrometheus, wait_for

LIMIT_SECONDS = 120.0
PATHS = {"wecom": WECOM, "dingtalk": DINGTALK, "feishu": FEISHU}
RULES = """\
groups:
  - name: proof
    rules:
      - {alert: HotslotA, expr: a == 1, labels: {severity: critical}, annotations: {summary: "a is 1"}}
      - {alert: HotslotB, expr: b == 1, labels: {severity: warning}, annotations: {summary: "b is 1"}}
"""


class Numbers:
    """Two metrics for Prometheus."""

    def __init__(self) -> None:
        self.values = {"a": 0, "b": 0}

    def set(self, name: str, value: int) -> None:
        """From the next scrape on."""
        self.values[name] = value


@contextmanager
def exported(numbers: Numbers) -> Iterator[int]:
    """Serves the metrics; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = "".join(f"{name} {value}\n" for name, value in numbers.values.items())
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with suppress(OSError):  # a scrape that did not wait
                self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def relaying(folder: Path, chat: SimulatedChat, kind: str, messages_a_minute: int = 18) -> Iterator[int]:
    """`hotslot alert-relay` as a process of its own; the port."""
    port = free_port()
    (folder / "url").write_text(chat.url(PATHS[kind]), encoding="ascii")
    (folder / "secret").write_text(SECRET, encoding="ascii")
    secret = "" if kind == "wecom" else f'secret_file = "{folder / "secret"}"\n'
    (folder / "relay.toml").write_text(
        f'port = {port}\nqueue_dir = "{folder / "queue"}"\n[[targets]]\nname = "ops"\nkind = "{kind}"\n'
        f'url_file = "{folder / "url"}"\nmessages_a_minute = {messages_a_minute}\n{secret}',
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "hotslot_watchdog.launch",
        "-m",
        "cli.main",
        "alert-relay",
        str(folder / "relay.toml"),
    ]
    with (folder / "relay.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port), "the relay listens", LIMIT_SECONDS)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def prove(kind: str, outage: float) -> list[tuple[str, str]]:
    """Run the story with one kind of robot; rows for a table."""
    rows, numbers = [], Numbers()
    with (
        tempfile.TemporaryDirectory(prefix="hotslot-watch-") as place,
        simulated_chat() as chat,
        exported(numbers) as metrics,
        relaying(Path(place), chat, kind) as relay,
        RealPrometheus(
            Path(place) / "prometheus", {"proof.yml": RULES}, {"proof": metrics}, f"http://127.0.0.1:{relay}/alerts/ops"
        ) as prometheus,
    ):
        wait_for(lambda: prometheus.query("a"), "Prometheus scrapes", LIMIT_SECONDS)
        chat.codes.extend([-1, -1])
        numbers.set("a", 1)
        seconds = wait_for(lambda: _told(chat, "FIRING** HotslotA"), "A reaches the chat", LIMIT_SECONDS)
        rows.append(("fires; the robot answers -1 twice", f"told after {seconds:.0f} s, {chat.attempts} attempts"))
        numbers.set("a", 0)
        seconds = wait_for(lambda: _told(chat, "RESOLVED** HotslotA"), "the end reaches the chat", LIMIT_SECONDS)
        rows.append(("ends", f"told after {seconds:.0f} s"))

        chat.down, before, begun = True, len(chat.messages), time.monotonic()
        numbers.set("a", 1)
        numbers.set("b", 1)
        wait_for(lambda: prometheus.firing() == {"HotslotA", "HotslotB"}, "both fire", LIMIT_SECONDS)
        time.sleep(min(20.0, outage / 2))
        numbers.set("b", 0)
        wait_for(lambda: prometheus.firing() == {"HotslotA"}, "one has ended", LIMIT_SECONDS)
        time.sleep(max(0.0, begun + outage - time.monotonic()))
        attempts, chat.down = chat.attempts, False
        seconds = wait_for(
            lambda: _told(chat, "FIRING** HotslotA", before) and _told(chat, "RESOLVED** HotslotB", before),
            "what happened meanwhile reaches the chat",
            LIMIT_SECONDS,
        )
        away = f"away for {time.monotonic() - begun - seconds:.0f} s (502); one fires on, one fires and ends"
        count = f"{attempts} attempts before, {len(chat.messages) - before} messages"
        rows.append((away, f"both told {seconds:.0f} s after it is back, {count}"))
    return rows


def _told(chat: SimulatedChat, part: str, first: int = 0) -> bool:
    return any(part in text for text in chat.texts()[first:])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outage", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--kind", choices=[*PATHS, "all"], default="all")
    options = parser.parse_args()
    print("| robot | what happens | what people see |\n|---|---|---|")
    for kind in PATHS if options.kind == "all" else [options.kind]:
        for what, seen in prove(kind, options.outage):
            print(f"| {kind} | {what} | {seen} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
