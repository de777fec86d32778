"""nginx, HAProxy and Envoy with the shipped files, but for ports and paths."""

import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from dev.harness.envoy import ENVOY
from dev.harness.process import ROOT, free_port
from dev.harness.waiting import eventually

DEPLOY = ROOT / "deploy"
SERVER_PORTS = (50051, 50052)  # in the shipped files
PROXY_PORT = 50050
Weights = tuple[int, int]  # of both servers; 0: takes no new calls


class ProxyMissing(Exception):
    """A program that this proof needs is not installed."""


class Proxy(ABC):
    """A proxy before two servers, while the `with` lasts.

    Args:
        folder: its configuration and log lie in it.
        ports: of the servers.
        weights: of the servers.
    """

    name = ""
    program = ""

    def __init__(self, folder: Path, ports: tuple[int, int], weights: Weights = (1, 1)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self._ports = folder, free_port(), ports
        self.log_path = folder / f"{self.name}.log"
        self.write(weights)

    @property
    def address(self) -> str:
        """Where clients call."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Start it, and wait until it listens."""
        if shutil.which(self.program) is None:
            raise ProxyMissing(f"{self.program} is not installed; dev/scripts/tools-deploy installs it")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(self.command(), cwd=self.folder, stdout=log, stderr=log)
        eventually(self._listens, what=f"{self.name} listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)

    @abstractmethod
    def set_weights(self, weights: Weights) -> None:
        """Give the servers other weights while it runs."""

    @abstractmethod
    def command(self) -> list[str]:
        """How it is started in the foreground."""

    @abstractmethod
    def write(self, weights: Weights) -> None:
        """Write its configuration."""

    def rendered(self, path: Path, more: Mapping[str, str]) -> str:
        """A shipped file with other values; each must be in it."""
        text = path.read_text(encoding="utf-8")
        ports = zip((PROXY_PORT, *SERVER_PORTS), (self.port, *self._ports), strict=True)
        changes = {str(ours): str(theirs) for ours, theirs in ports if str(ours) in text}
        for ours, theirs in {**changes, **more}.items():
            if ours not in text:
                raise ValueError(f"{path} has no {ours!r}")
            text = text.replace(ours, theirs)
        return text

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended: {self.log_path.read_text(errors='replace')[-2000:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Nginx(Proxy):
    """Weights by a reload of the file."""

    name = program = "nginx"

    def write(self, weights: Weights) -> None:
        """Write its configuration."""
        shares = ["down" if weight == 0 else f"weight={weight}" for weight in weights]
        begun = [f"127.0.0.1:{port} max_fails=1 fail_timeout=2s" for port in self._ports]
        more = {f"{line} weight=1;": f"{line} {share};" for line, share in zip(begun, shares, strict=True)}
        text = self.rendered(DEPLOY / "nginx" / "nginx.conf", more)
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")

    def command(self) -> list[str]:
        """In the foreground, with its files in the folder."""
        globals_ = f"daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/error.log info;"
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", globals_]

    def set_weights(self, weights: Weights) -> None:
        """Reload, and wait for it as the file says; old workers finish what they carry."""
        before = psutil.Process(self.process.pid).children()
        self.write(weights)
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: not any(map(_takes_calls, before)), 60.0, "the workers of before take no new calls")


def _takes_calls(worker: psutil.Process) -> bool:
    """Whether a worker of nginx has not been told yet to end."""
    try:
        return worker.status() != psutil.STATUS_ZOMBIE and "shutting down" not in " ".join(worker.cmdline())
    except psutil.NoSuchProcess:
        return False


class HaProxy(Proxy):
    """Weights and states through the stats socket."""

    name = program = "haproxy"

    def write(self, weights: Weights) -> None:
        """Write its configuration."""
        names = (f"server {name} 127.0.0.1:{port}" for name, port in zip(("one", "two"), self._ports, strict=True))
        more = {f"{name} weight 100": f"{name} weight {100 * w}" for name, w in zip(names, weights, strict=True)}
        # The stats socket's name has at most 107 bytes.
        more["/run/haproxy.sock"] = str(self.folder / "haproxy.sock")
        text = self.rendered(DEPLOY / "haproxy" / "haproxy.cfg", more)
        (self.folder / "haproxy.cfg").write_text(text, encoding="utf-8")

    def command(self) -> list[str]:
        """The command line that runs the proxy in the foreground."""
        return ["haproxy", "-db", "-f", str(self.folder / "haproxy.cfg")]

    def set_weights(self, weights: Weights) -> None:
        """A weight of 0 drains a server: what it has begun goes on."""
        for name, weight in zip(("one", "two"), weights, strict=True):
            self.tell(f"set server hotslot/{name} state {'ready' if weight else 'drain'}")
            if weight:
                self.tell(f"set server hotslot/{name} weight {min(256, 100 * weight)}")

    def tell(self, line: str) -> str:
        """The answer of its socket to a command."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "haproxy.sock"))
            connection.sendall(f"{line}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


class Envoy(Proxy):
    """Weights by a file that Envoy watches."""

    name = "envoy"
    program = str(ENVOY)

    def write(self, weights: Weights) -> None:
        """Write its configuration."""
        servers = self.folder / "servers.yaml"
        text = self.rendered(DEPLOY / "envoy" / "grpc.yaml", {"deploy/envoy/servers.yaml": str(servers)})
        (self.folder / "grpc.yaml").write_text(text, encoding="utf-8")
        self._write_servers(weights)

    def command(self) -> list[str]:
        """In the foreground; two workers as by default on two cores."""
        return [str(ENVOY), "--config-path", str(self.folder / "grpc.yaml"), "--disable-hot-restart"]

    def set_weights(self, weights: Weights) -> None:
        """Replace the list of servers; one with 0 is left out, and what it has begun goes on."""
        self._write_servers(weights)

    def _write_servers(self, weights: Weights) -> None:
        text = self.rendered(DEPLOY / "envoy" / "servers.yaml", {})
        head, *servers = text.split("          - endpoint:\n")
        shown = [
            server.replace("load_balancing_weight: 100", f"load_balancing_weight: {100 * weight}")
            for server, weight in zip(servers, weights, strict=True)
            if weight
        ]
        (self.folder / "servers.new").write_text("          - endpoint:\n".join([head, *shown]), encoding="utf-8")
        (self.folder / "servers.new").replace(self.folder / "servers.yaml")


PROXIES: tuple[type[Proxy], ...] = (Nginx, HaProxy, Envoy)
