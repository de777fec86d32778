"""Kinds that other projects add to Kubernetes: definitions from the projects' own Go modules, and broken variants."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CustomKinds:
    """The definitions of one project, and the folder of manifests that needs them."""

    overlay: str  # below deploy/kubernetes
    module: str  # of Go, with its version; its files have the definitions that its types were made into
    files: tuple[str, ...]  # below the module's folder


CUSTOM = (
    CustomKinds(
        "overlays/gateway",
        "sigs.k8s.io/gateway-api@v1.6.3",
        ("config/crd/standard/gateway.networking.k8s.io_grpcroutes.yaml",),
    ),
    CustomKinds(
        "overlays/keda",
        "github.com/kedacore/keda/v2@v2.21.0",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
    CustomKinds(
        "overlays/kserve",
        "github.com/kserve/kserve@v0.15.2",
        (
            "config/crd/full/serving.kserve.io_servingruntimes.yaml",
            "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class BrokenCustom:
    """A change of an overlay that its definitions must refuse."""

    name: str
    overlay: str
    kind: str
    operation: dict[str, object]  # of a JSON patch


_ROUTE = "/spec/rules/0"
BROKEN_CUSTOM = (
    BrokenCustom(
        "a weight as words",
        "overlays/gateway",
        "GRPCRoute",
        {"op": "replace", "path": f"{_ROUTE}/backendRefs/0/weight", "value": "most"},
    ),
    BrokenCustom(
        "a match of neither service nor method",
        "overlays/gateway",
        "GRPCRoute",
        {"op": "replace", "path": f"{_ROUTE}/matches/0/method", "value": {"type": "Exact"}},
    ),
    BrokenCustom(
        "a backend without a port",
        "overlays/gateway",
        "GRPCRoute",
        {"op": "remove", "path": f"{_ROUTE}/backendRefs/0/port"},
    ),
    BrokenCustom(
        "a number of pods as words",
        "overlays/keda",
        "ScaledObject",
        {"op": "replace", "path": "/spec/minReplicaCount", "value": "two"},
    ),
    BrokenCustom("no trigger", "overlays/keda", "ScaledObject", {"op": "remove", "path": "/spec/triggers"}),
    BrokenCustom(
        "a misspelt field of the scaler",
        "overlays/keda",
        "ScaledObject",
        {"op": "add", "path": "/spec/minReplicas", "value": 2},
    ),
    BrokenCustom(
        "a threshold as a number, where text is asked",
        "overlays/keda",
        "ScaledObject",
        {"op": "replace", "path": "/spec/triggers/0/metadata/threshold", "value": 8},
    ),
    BrokenCustom(
        "a runtime without containers",
        "overlays/kserve",
        "ServingRuntime",
        {"op": "remove", "path": "/spec/containers"},
    ),
    BrokenCustom(
        "a misspelt field of a runtime",
        "overlays/kserve",
        "ServingRuntime",
        {"op": "add", "path": "/spec/protocolVersion", "value": "grpc-v2"},
    ),
    BrokenCustom(
        "a model format without a name",
        "overlays/kserve",
        "InferenceService",
        {"op": "remove", "path": "/spec/predictor/model/modelFormat/name"},
    ),
)


def find_definitions(kinds: CustomKinds) -> tuple[list[Path], str]:
    """The files of a project's definitions, through Go's module proxy; or why there are none."""
    command = ["go", "mod", "download", "-json", kinds.module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    found = json.loads(done.stdout or "{}")
    if "Dir" not in found:
        return [], str(found.get("Error", done.stderr)).strip()[-300:]
    files = [Path(found["Dir"]) / name for name in kinds.files]
    missing = [str(path.name) for path in files if not path.is_file()]
    return ([], f"{kinds.module} has no {', '.join(missing)}") if missing else (files, "")


def wait_established(kubectl: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The command that ends when the API server serves the kinds of these files."""
    listed = [part for path in files for part in ("-f", str(path))]
    return [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", *listed]
