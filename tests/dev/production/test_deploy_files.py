"""What deploy/ ships fits the program: settings, exit codes, periods, checks, metrics. `make test-deploy` runs it."""

import re
import socket
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cli.config_check import list_mistakes
from cli.settings import Settings
from common.exit_codes import ExitCode
from common.settings import load_settings
from dev.production.manifests import find_closed_peers
from dev.production.report import PAGE, make_page, read_parts
from dev.production.unit import UNIT, read_unit
from hotslot_watchdog.launch import WRONG_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def settings_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a file of this text gives."""
    path = folder / "hotslot.toml"
    path.write_text(text.replace("@NAME@", "shapes").replace("@TASK@", "visual-entailment"), encoding="utf-8")
    monkeypatch.setenv("HOTSLOT_CONFIG", str(path))
    return load_settings(Settings)


@pytest.mark.parametrize("name", ["image-settings.toml", "kubernetes/settings/hotslot.toml"])
def test_shipped_settings_have_no_mistakes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hotslot config check` finds them."""
    settings = settings_of((DEPLOY / name).read_text(encoding="utf-8"), tmp_path, monkeypatch)

    assert list_mistakes(settings) == []


def test_the_pod_has_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes kills later than the stack itself would, which is later than a full drain takes."""
    text = (DEPLOY / "kubernetes" / "settings" / "hotslot.toml").read_text(encoding="utf-8")
    settings = settings_of(text, tmp_path, monkeypatch)
    drain = settings.server.drain_delay_seconds + settings.server.grace_seconds + settings.runner.retire_seconds
    manifest = (DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text(encoding="utf-8")
    found = re.search(r"terminationGracePeriodSeconds: (\d+)", manifest)

    assert found is not None
    assert drain < settings.watchdog.stop_seconds < int(found[1])


def init_script(name: str) -> str:
    """The script of a manifest's init container."""
    found = re.search(r"- sh\n +- -ceu\n +- \|\n((?: {12,}.*\n)+)", (KUBERNETES / name).read_text(encoding="utf-8"))
    assert found is not None
    return textwrap.dedent(found[1])


def test_a_pod_of_kserve_begins_as_any_other() -> None:
    """With the image's model, by the same script."""
    assert init_script("overlays/kserve/service.yaml") == init_script("base/deployment.yaml")


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ({}, {"bundles/b": "baked", "committed.json": "baked"}),
        ({"bundles/half": "old"}, {"bundles/b": "baked", "committed.json": "baked"}),  # of a copy that was cut off
        ({"bundles/mine": "old", "journal.db": "held"}, {"bundles/mine": "old", "journal.db": "held"}),
        ({"journal.witness": "held"}, {"journal.witness": "held"}),
        ({"committed.json": "old"}, {"committed.json": "old"}),
    ],
    ids=["empty", "cut off", "first model held", "witness alone", "committed"],
)
def test_a_volume_with_a_state_keeps_it(volume: dict[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    """The init container copies the image's model into a volume without one, and removes nothing of an updater's."""
    image, state = tmp_path / "image", tmp_path / "state"
    for folder, files in ((image, {"bundles/b": "baked", "committed.json": "baked"}), (state, volume)):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
    script = init_script("base/deployment.yaml").replace("/var/lib/hotslot", str(image)).replace("/state", str(state))
    subprocess.run(["/bin/sh", "-ceu", script], check=True)

    kept = {str(path.relative_to(state)): path.read_text() for path in state.rglob("*") if path.is_file()}
    assert kept == expected


def test_systemd_restarts_only_where_it_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after wrong settings or in a wrong environment; and it kills later than the stack itself."""
    service = read_unit(UNIT.read_text(encoding="utf-8"))
    default = settings_of('[[models]]\nname = "shapes"\n', tmp_path, monkeypatch)

    assert service["RestartPreventExitStatus"].split() == [str(int(ExitCode.WRONG_USE)), str(WRONG_ENVIRONMENT)]
    assert int(service["TimeoutStopSec"].removesuffix("s")) > default.watchdog.stop_seconds


def test_supervisord_may_give_its_socket_an_owner() -> None:
    """It ends if `chown` fails, which is one of the calls that `@privileged` removes: the last line allows it again."""
    filters = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)

    assert filters == ["@system-service", "~@privileged", "@chown"]


@contextmanager
def health_server(state: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> Iterator[int]:
    """A server with gRPC's own health service; yields its port."""
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("", state)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def check_as_haproxy(port: int) -> bool:
    """Send the frames of the shipped file; whether what it expects comes."""
    text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
    sent = bytes.fromhex("".join(re.findall(r"tcp-check send-binary (\w+)", text)))
    expected = bytes.fromhex(re.findall(r"tcp-check expect binary (\w+)", text)[0])
    received = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(sent)
        while b"grpc-status" not in received and expected not in received:
            received += connection.recv(65536)
    return expected in received


def test_haproxy_uses_a_server_that_serves_and_no_other() -> None:
    """Its check is written in bytes."""
    with health_server(SERVING) as port:
        assert check_as_haproxy(port)
    with health_server(NOT_SERVING) as port:
        assert not check_as_haproxy(port)


def test_autoscaling_asks_for_metrics_that_exist() -> None:
    """The adapter makes each metric of the autoscaler from one of hotslot's."""
    known = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rules = (DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    scaler = (DEPLOY / "kubernetes" / "overlays" / "canary" / "autoscaling.yaml").read_text(encoding="utf-8")
    series = {name.removesuffix("_bucket") for name in re.findall(r"seriesQuery: '(\w+)", rules)}
    made = set(re.findall(r"name: \{as: (\w+)\}", rules))

    assert [name for name in series if f"| `{name}` |" not in known] == []
    assert set(re.findall(r"metric: \{name: (\w+)\}", scaler)) - made == set()


def test_both_autoscalers_ask_for_metrics_that_exist() -> None:
    """KEDA asks Prometheus itself; both name the same series, with a stage that there is."""
    catalog = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    asked = (KUBERNETES / "overlays" / "keda" / "scaledobject.yaml").read_text(encoding="utf-8")
    names = {name.removesuffix("_bucket") for name in re.findall(r"\b(hotslot_\w+)\{", asked)}

    assert [name for name in names if f"| `{name}` |" not in catalog] == []
    assert 'stage="total"' in asked
    assert '"total"' in catalog
    assert names == {"hotslot_waiting_requests", "hotslot_item_seconds"}


def test_what_is_scaled_names_no_number_of_pods() -> None:
    """Each apply would set back what the autoscaler has chosen."""
    for name in ("canary/blue", "canary/green", "keda"):
        text = (KUBERNETES / "overlays" / name / "kustomization.yaml").read_text(encoding="utf-8")
        assert "{op: remove, path: /spec/replicas}" in text, name

    scaled = re.findall(
        r"kind: Deployment, name: ([\w-]+)", (KUBERNETES / "overlays" / "canary" / "autoscaling.yaml").read_text()
    )
    assert scaled == ["hotslot-blue", "hotslot-green"]


def test_manifests_name_the_image_of_this_version() -> None:
    """Also where kustomize does not write it."""
    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    tags = {
        (path.name, tag)
        for path in KUBERNETES.rglob("*.yaml")
        for tag in re.findall(r"(?:image: hotslot:|newTag: )([\w.]+)", path.read_text(encoding="utf-8"))
    }

    assert {tag for _, tag in tags} == {version}
    assert {name for name, _ in tags} == {"kustomization.yaml", "runtime.yaml", "service.yaml"}


def test_open_ports_are_those_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network policy lets callers and Prometheus through; Prometheus finds the ports by their names."""
    settings = settings_of(
        (KUBERNETES / "settings" / "hotslot.toml").read_text(encoding="utf-8"), tmp_path, monkeypatch
    )
    policy = (KUBERNETES / "base" / "networkpolicy.yaml").read_text(encoding="utf-8")
    manifest = (KUBERNETES / "base" / "deployment.yaml").read_text(encoding="utf-8")
    scrape = (KUBERNETES / "prometheus-scrape.yaml").read_text(encoding="utf-8")
    named = dict(re.findall(r"\{name: (\w+), containerPort: (\d+)\}", manifest))
    found = {name: int(port) for name, port in named.items()}

    assert [port for port in found.values() if f"{{port: {port}}}" not in policy] == []
    assert re.findall(r"container_port_name\], regex: (\w+),", scrape) == ["metrics", "updates"]
    assert found == {
        "grpc": settings.server.port,
        "metrics": settings.server.metrics_port,
        "updates": settings.updater.metrics_port,
    }


def test_callers_need_no_label_of_hotslot_s_own_pods() -> None:
    """Kustomize adds those to each matchLabels of a peer, but not to expressions; `make test-deploy` renders it."""
    policy = (KUBERNETES / "base" / "networkpolicy.yaml").read_text(encoding="utf-8")
    peers = re.findall(r"- podSelector:\n +(\w+):", policy.partition("ingress:")[2])

    assert peers == ["matchExpressions"]
    rendered = "kind: NetworkPolicy\nspec:\n  ingress:\n  - from:\n{}\n  podSelector:\n    name: hotslot\n"
    assert find_closed_peers(rendered.format("        hotslot-client: 'true'")) == []
    assert len(find_closed_peers(rendered.format("        app.kubernetes.io/name: hotslot"))) == 1


def test_a_switch_of_colours_outlives_the_next_apply() -> None:
    """The colour that callers reach is in a file: what only the cluster knows, an apply would set back."""
    overlay = (KUBERNETES / "overlays" / "canary" / "kustomization.yaml").read_text(encoding="utf-8")

    assert "#   kubectl patch" not in overlay
    assert "`colour: green` into service.yaml" in overlay


def test_pods_with_tls_are_probed_where_no_tls_is_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of Kubernetes speak none; the overlay's variables are settings."""
    overlay = (KUBERNETES / "overlays" / "tls" / "kustomization.yaml").read_text(encoding="utf-8")
    for name, value in re.findall(r"\{name: (HOTSLOT_\w+), value: \"?([^}\"]+)\"?\}", overlay):
        monkeypatch.setenv(name, value)
    settings = settings_of(
        (KUBERNETES / "settings" / "hotslot.toml").read_text(encoding="utf-8"), tmp_path, monkeypatch
    )
    probes = dict(re.findall(r"path: /spec/template/spec/containers/0/(\w+Probe)/grpc/port, value: (\d+)", overlay))

    assert set(probes.values()) == {str(settings.health.port)}
    assert sorted(probes) == ["livenessProbe", "readinessProbe", "startupProbe"]
    assert settings.tls.files is not None
    assert str(settings.tls.files.certificate) == "/etc/hotslot-tls/tls.crt"
    assert str(settings.server.tokens_file) == "/etc/hotslot-tokens/tokens"


def test_the_page_shows_the_report() -> None:
    """docs/deploy-report.md is made of docs/deploy-report.json."""
    assert PAGE.read_text(encoding="utf-8") == make_page(read_parts())
