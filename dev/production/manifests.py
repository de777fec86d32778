"""Renders and validates the manifests, and checks that broken ones are refused; by a real API server if one is here."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.harness.process import ROOT, free_port
from dev.harness.waiting import eventually
from dev.production.custom_resources import BROKEN_CUSTOM, CUSTOM, CustomKinds, find_definitions, wait_established

KUBERNETES = ROOT / "deploy" / "kubernetes"
VALIDATE = ROOT / ".tools" / "kube-validate" / "bin" / "kubernetes-validate"
APISERVER_VERSION = "1.36.3"
KUSTOMIZATIONS = ("base", "overlays/single", "overlays/gpu", "overlays/canary", "overlays/tls")
_CONTAINER = "/spec/template/spec/containers/0"
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Broken:
    """A change of the base that must be refused; those that only the API server knows are not asked of the schema."""

    name: str
    kind: str
    operation: dict[str, Any]  # of a JSON patch
    schema_knows: bool = True


BROKEN = (
    Broken("replicas are words", "Deployment", {"op": "replace", "path": "/spec/replicas", "value": "two"}),
    Broken(
        "a misspelt field of a probe",
        "Deployment",
        {"op": "replace", "path": f"{_CONTAINER}/readinessProbe", "value": {"grpc": {"port": 50051, "sevice": "x"}}},
    ),
    Broken(
        "a port as a name in a gRPC probe",
        "Deployment",
        {"op": "replace", "path": f"{_CONTAINER}/livenessProbe", "value": {"grpc": {"port": "grpc"}}},
    ),
    Broken(
        "a field beside its place",
        "Deployment",
        {"op": "add", "path": "/spec/terminationGracePeriodSeconds", "value": 60},
    ),
    Broken(
        "capabilities as a word",
        "Deployment",
        {"op": "replace", "path": f"{_CONTAINER}/securityContext/capabilities/drop", "value": "ALL"},
    ),
    Broken("a port as words", "NetworkPolicy", {"op": "replace", "path": "/spec/policyTypes", "value": "Ingress"}),
    Broken(
        "both limits of a disruption budget",
        "PodDisruptionBudget",
        {"op": "add", "path": "/spec/minAvailable", "value": 1},
        schema_knows=False,
    ),
    Broken(
        "requests above limits",
        "Deployment",
        {"op": "replace", "path": f"{_CONTAINER}/resources/requests/memory", "value": "9Gi"},
        schema_knows=False,
    ),
    Broken(
        "a mount without a volume",
        "Deployment",
        {"op": "replace", "path": f"{_CONTAINER}/volumeMounts/0/name", "value": "nothing"},
        schema_knows=False,
    ),
)


@dataclass(slots=True)
class ManifestReport:
    """What was accepted and refused, by whom."""

    tools: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def check_manifests(folder: Path) -> ManifestReport:
    """Check all manifests in a scratch folder."""
    report = ManifestReport()
    missing = [name for name in ("kubectl", str(VALIDATE)) if shutil.which(name) is None]
    if missing:
        report.problems.append(f"not found: {', '.join(missing)}; dev/scripts/tools-deploy installs them")
        return report
    rendered = {name: _render(KUBERNETES / name) for name in KUSTOMIZATIONS}
    report.problems += [f"{name}: {problem}" for name, text in rendered.items() for problem in find_closed_peers(text)]
    report.tools.append(f"kubectl {_version('kubectl', 'version', '--client', '-o', 'json')}")
    report.tools.append("kubernetes-validate " + _run([str(VALIDATE), "--version"]).stdout.strip())
    variants = {
        variant.name: _render(_broken(folder / f"broken-{number}", variant.kind, variant.operation, "base"))
        for number, variant in enumerate(BROKEN)
    }
    for name, text in rendered.items():
        _expect(report, _validate(folder, text), f"kubernetes-validate --strict: {name}", is_good=True)
    for variant in BROKEN:
        if variant.schema_knows:
            done = _validate(folder, variants[variant.name])
            _expect(report, done, f"kubernetes-validate --strict: {variant.name}", is_good=False)
    apiserver = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        / "hotslot"
        / f"kube-apiserver-{APISERVER_VERSION}"
    )
    if not apiserver.exists():
        report.left_out.append(
            "a real API server: dev/scripts/tools-kube builds it (20 minutes to an hour of one core)"
        )
        return report
    with running_apiserver(apiserver, folder / "apiserver") as kubectl:
        report.tools.append(f"kube-apiserver {APISERVER_VERSION}, etcd")
        for name, text in rendered.items():
            mine = _namespace(kubectl, name.replace("/", "-"))
            for way in (["create", "--dry-run=server"], ["apply", "--server-side"]):
                done = _run([*mine, *way, "-f", "-"], text)
                _expect(report, done, f"API server, {' '.join(way)}: {name}", is_good=True)
        # An empty one: nothing is refused because it exists already.
        empty = _namespace(kubectl, "broken")
        for broken, text in variants.items():
            done = _run([*empty, "create", "--dry-run=server", "-f", "-"], text)
            _expect(report, done, f"API server: {broken}", is_good=False)
        for kinds in CUSTOM:
            _check_custom(report, kubectl, kinds, folder)
    return report


def find_closed_peers(rendered: str) -> list[str]:
    """Peers of a rendered policy that only hotslot's own pods would be: kustomize adds their labels to matchLabels."""
    policies = [text for text in rendered.split("\n---\n") if "\nkind: NetworkPolicy\n" in f"\n{text}"]
    if not policies:
        return ["no NetworkPolicy"]
    peers = [text.partition("\n  ingress:\n")[2].partition("\n  podSelector:\n")[0] for text in policies]
    return ["a peer of the NetworkPolicy has the labels of hotslot's pods" for text in peers if "name: hotslot" in text]


def _check_custom(report: ManifestReport, kubectl: list[str], kinds: CustomKinds, folder: Path) -> None:
    """Teach the API server a project's kinds; then create the manifests that need them, and broken ones."""
    files, why = find_definitions(kinds)
    if not files:
        report.left_out.append(f"{kinds.overlay}, which needs the definitions of {kinds.module}: {why}")
        return
    report.tools.append(kinds.module)
    # Server-side, since a client-side apply keeps a copy in an annotation, for which these are too large.
    taught = _run([*kubectl, "apply", "--server-side", *(part for path in files for part in ("-f", str(path)))])
    if taught.returncode:
        report.problems.append(f"{kinds.module}: {taught.stderr.strip()[-600:]}")
        return
    # Asked again: it fails for a definition that has no status yet.
    eventually(lambda: _run(wait_established(kubectl, files)).returncode == 0, 60.0, f"{kinds.module} is served", 1)
    mine, text = _namespace(kubectl, kinds.overlay.replace("/", "-")), _render(KUBERNETES / kinds.overlay)
    for way in (["create", "--dry-run=server"], ["apply", "--server-side"]):
        done = _run([*mine, *way, "-f", "-"], text)
        _expect(report, done, f"API server, {' '.join(way)}: {kinds.overlay}", is_good=True)
    if kinds.overlay == "overlays/kserve":
        done = _run([*mine, "create", "--dry-run=server", "-f", "-"], json.dumps(_merge_as_kserve(mine)))
        _expect(report, done, "API server, create --dry-run=server: the pod that KServe makes of both", is_good=True)
    empty = _namespace(kubectl, kinds.overlay.replace("/", "-") + "-broken")
    for number, variant in enumerate(row for row in BROKEN_CUSTOM if row.overlay == kinds.overlay):
        place = folder / f"custom-{kinds.overlay.rpartition('/')[2]}-{number}"
        broken = _render(_broken(place, variant.kind, variant.operation, variant.overlay))
        done = _run([*empty, "create", "--dry-run=server", "-f", "-"], broken)
        _expect(report, done, f"API server with {kinds.module}: {variant.name}", is_good=False)


def _merge_as_kserve(kubectl: list[str]) -> dict[str, Any]:
    """The Deployment of an InferenceService: its pod is merged over the runtime's, as KServe's MergePodSpec does."""
    runtime, service = (
        json.loads(_run([*kubectl, "get", kind, "hotslot", "-o", "json"]).stdout)["spec"]
        for kind in ("servingruntime", "inferenceservice")
    )
    own = ("model", "minReplicas", "maxReplicas")  # fields of KServe beside the pod's
    pod = {key: value for key, value in service["predictor"].items() if key not in own}
    labels = {"app": "hotslot"}
    template = {"metadata": {"labels": labels}, "spec": {key: runtime[key] for key in ("containers", "volumes")}}
    row = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hotslot-predictor"}}
    row["spec"] = {"selector": {"matchLabels": labels}, "template": template}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    merged = _run(
        ["kubectl", "patch", "--local", "--type=strategic", "-f", "-", "-p", patch, "-o", "json"], json.dumps(row)
    )
    whole: dict[str, Any] = json.loads(merged.stdout)
    spec = whole["spec"]["template"]["spec"]
    if not spec.get("initContainers") or len(spec["volumes"]) != len(runtime["volumes"]):
        raise AssertionError(f"the merged pod lacks its init container or a volume: {spec}")
    return whole


def _namespace(kubectl: list[str], name: str) -> list[str]:
    """A new namespace; returns the kubectl that works in it."""
    done = _run([*kubectl, "create", "namespace", name])
    if done.returncode:
        raise AssertionError(done.stderr)
    return [*kubectl, "--namespace", name]


def _expect(report: ManifestReport, done: "subprocess.CompletedProcess[str]", what: str, *, is_good: bool) -> None:
    said = (done.stderr + done.stdout).strip()[-600:]
    if (done.returncode == 0) != is_good:
        report.problems.append(f"{what}: {'refused' if is_good else 'accepted'}: {said}")
    elif is_good:
        report.accepted.append(what)
    else:
        report.refused.append(what)


def _render(folder: Path) -> str:
    done = _run(["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)])
    if done.returncode:
        raise AssertionError(f"{folder}: {done.stderr}")
    return done.stdout


def _broken(folder: Path, kind: str, operation: dict[str, Any], of: str) -> Path:
    """A kustomization of another one with one change."""
    folder.mkdir(parents=True)
    base = os.path.relpath(KUBERNETES / of, folder)
    patch = {"target": {"kind": kind}, "patch": json.dumps([operation])}
    row = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [base],
        "patches": [patch],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(row), encoding="utf-8")  # JSON is YAML
    return folder


def _validate(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    path = folder / "rendered.yaml"
    path.write_text(text, encoding="utf-8")
    return _run([str(VALIDATE), "--strict", str(path)])


@contextlib.contextmanager
def running_apiserver(program: Path, folder: Path) -> Iterator[list[str]]:
    """A kube-apiserver over an etcd of its own; yields the kubectl that calls it."""
    folder.mkdir(parents=True)
    port, etcd, peers = free_port(), free_port(), free_port()
    _run(["openssl", "genrsa", "-out", str(folder / "account.key"), "2048"])
    (folder / "tokens.csv").write_text('secret,admin,admin,"system:masters"\n')
    store = f"http://127.0.0.1:{etcd}"
    commands = [_etcd(folder, store, f"http://127.0.0.1:{peers}"), _apiserver(program, folder, store, port)]
    kubectl = ["kubectl", "--server", f"https://127.0.0.1:{port}", "--insecure-skip-tls-verify", "--token", "secret"]
    with contextlib.ExitStack() as opened:
        for command in commands:
            log = opened.enter_context((folder / f"{Path(command[0]).name}.log").open("wb"))
            process = opened.enter_context(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
            opened.callback(process.terminate)
        eventually(
            lambda: _run([*kubectl, "get", "--raw", "/readyz"]).returncode == 0,
            _LIMIT_SECONDS,
            "the API server is ready",
            1,
        )
        yield kubectl


def _etcd(folder: Path, store: str, peers: str) -> list[str]:
    flags = {
        "data-dir": folder / "etcd",
        "listen-client-urls": store,
        "advertise-client-urls": store,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
    }
    return ["etcd", *(f"--{name}={value}" for name, value in flags.items())]


def _apiserver(program: Path, folder: Path, store: str, port: int) -> list[str]:
    flags = {
        "etcd-servers": store,
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "cert-dir": folder / "certificates",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": folder / "account.key",
        "service-account-signing-key-file": folder / "account.key",
        "token-auth-file": folder / "tokens.csv",
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.0.0.0/16",
        "disable-admission-plugins": "ServiceAccount",  # no controller makes the accounts here
    }
    return [str(program), *(f"--{name}={value}" for name, value in flags.items())]


def _version(*command: str) -> str:
    return str(json.loads(_run(command).stdout)["clientVersion"]["gitVersion"])


def _run(command: Sequence[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
