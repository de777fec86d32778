"""Revisions that pass the real verification and are converted to scripted bundles by a stub."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.bundle import (
    Bundle,
    BundleBroken,
    Provenance,
    bundle_folder,
    compute_bundle_digest,
    hash_file,
    read_bundle,
    write_bundle,
)
from common.sealing import ConvertLimits, seal
from common.source import ConversionRefused, find_source
from dev.harness.scripted_engine import CONVERTER, NAME, SCRIPT_NAME, Script

if TYPE_CHECKING:
    from cli.hub import PublishedRevision

MODEL = "shapes"
_CONFIGURATION = {
    "framework": "pytorch",
    "task": "visual-entailment",
    "model": {"type": "ofa", "language": "en", "gen_type": "traverse"},
    "pipeline": {"type": "visual-entailment"},
    "preprocessor": {"type": "ofa-tasks-preprocessor"},
}


def model_folder(
    place: Path,
    revision: str,
    configuration: dict[str, Any] | None = None,
    weights_bytes: int = 4096,
    **script: Any,  # noqa: ANN401  of Script
) -> Path:
    """Write a model folder; `script` sets fields of Script, `configuration` replaces keys of configuration.json."""
    folder = place / f"made-{revision}"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"script": {"revision": revision, **script}})
    (folder / "config.json").write_text(text, encoding="utf-8")
    row = {**_CONFIGURATION, **(configuration or {})}
    (folder / "configuration.json").write_text(json.dumps(row), encoding="utf-8")
    (folder / "vocab.json").write_text("{}", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights_of(revision, weights_bytes))
    return folder


def weights_of(revision: str, size: int = 4096) -> bytes:
    """The content of a safetensors file with a valid header."""
    count = size - 8 - 200
    rows = {"__metadata__": {"of": revision}, "w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    return (200).to_bytes(8, "little") + json.dumps(rows).encode().ljust(200) + b"." * count


def publish_scripted(hub: Path, revision: str, place: Path | None = None, **script: Any) -> "PublishedRevision":  # noqa: ANN401  of Script
    """Publish a revision into a folder hub."""
    from cli.hub import publish  # noqa: PLC0415  the command line's libraries, which no scripted updater needs

    return publish(model_folder(place or hub.parent / "made", revision, **script), hub, MODEL, revision)


def convert_scripted(
    source: Path,
    state: Path,
    revision: str,
    limits: ConvertLimits,
    precision: str = "float32",
    *,
    digest: str = "",
    provenance: Provenance | None = None,
) -> Bundle:
    """Like `run_convert`, without torch: converts the script in config.json to a bundle of the scripted engine."""
    found = find_source(source).digest()
    sealed = compute_bundle_digest(digest or found, NAME, CONVERTER, precision)
    try:
        return read_bundle(bundle_folder(state, sealed))
    except BundleBroken:
        pass
    if found != (digest or found):
        raise ConversionRefused("SOURCE_CHANGED", "the files changed before they were converted")
    row = json.loads((source / "config.json").read_text(encoding="utf-8"))["script"]
    fault = row.pop("fail_convert", "")
    if fault:
        raise ConversionRefused(fault, "refused on command")
    staging = state / "staging" / f"convert-{os.getpid()}-{revision}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    script = {name: row[name] for name in Script.__dataclass_fields__ if name in row}
    (staging / SCRIPT_NAME).write_text(json.dumps(script), encoding="utf-8")
    bundle = Bundle(
        bundle_digest=sealed,
        source_digest=found,
        revision=revision,
        engine=NAME,
        task="visual-entailment",
        precision=precision,
        converter=CONVERTER,
        files=(hash_file(staging / SCRIPT_NAME),),
        provenance=provenance,
    )
    write_bundle(staging, bundle)
    return seal(staging, state)


def write_golden(folder: Path) -> None:
    """Write a golden set of a few pictures without expected answers."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(4):
        (folder / f"{number}.png").write_bytes(f"picture {number}".encode())
        row = {"item": f"item-{number}", "image": f"{number}.png", "statements": ["a", "b"]}
        lines.append(json.dumps(row) + "\n")
    (folder / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
