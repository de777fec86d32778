"""docs/deploy-report.json and its page: what ran last, when, on what, with what result. A run replaces its own part."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dev.harness.commit import read_commit
from dev.harness.process import ROOT

REPORT = ROOT / "docs" / "deploy-report.json"
PAGE = ROOT / "docs" / "deploy-report.md"
Part = Mapping[str, Any]


def read_parts() -> dict[str, Part]:
    """What is known, by part."""
    return json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}


def write_part(name: str, content: Part) -> None:
    """Replace one part, with date, commit and machine, and make the page."""
    parts = {**read_parts(), name: {**content, **_circumstances()}}
    REPORT.write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(make_page(parts), encoding="utf-8")


def make_page(parts: Mapping[str, Part]) -> str:
    """The page of all parts."""
    lines = [
        "# What of deploy/ was run",
        "",
        "`make test-deploy` and `make test-image` make this page of `deploy-report.json`; each part says when it ran.",
        "A commit that ends with `-changed` had changes in its working tree that were not committed yet.",
    ]
    for name, show in (
        ("proxies", _proxies),
        ("kubernetes", _kubernetes),
        ("systemd", _unit),
        ("ci", _ci),
        ("image", _image),
    ):
        if name in parts:
            lines += ["", *show(parts[name]), "", _ran_on(parts[name])]
    return "\n".join(lines) + "\n"


_PROXIES = """\
Two real servers with the scripted engine, behind the shipped files but for their ports. Eight callers and four streams
with the shipped service config; a server drains and ends, starts again, another is killed with its runners and starts
again, then all calls are switched from blue to green and blue ends. An item of a stream counts as failed if it has no
outcome after 30 s.

| proxy | calls | failed | stream items | streams opened | wrong answers | slowest call | slowest item |
|---|---|---|---|---|---|---|---|"""
_UNIT = """\
`systemd-analyze verify` ({systemd}) has nothing to say; `security --offline=true` rates the exposure {exposure} (0 is
best, 10 worst). """
_UNIT_RUN = """\
The unit as it is shipped then ran under this systemd, as the first process of namespaces of its own, with the wheel in
/opt/hotslot and the demo model:
"""
_UNIT_LINE = """\
The line of `ExecStart` ran under: {limits}. It served, and after SIGTERM ended with {exit_code} in {stop_seconds} s.
Namespaces and system-call filters are systemd's own and were not run{why}."""


def _proxies(part: Part) -> list[str]:
    lines = ["## Two servers behind a proxy", "", _PROXIES]
    lines += [
        f"| {row['proxy']} {row['version']} | {row['calls']} | {len(row['failed'])} | {row['items']} | {row['streams']}"
        f" | {row['wrong']} | {row['slowest_call_seconds']:.2f} s | {row['slowest_item_seconds']:.2f} s |"
        for row in part["rows"]
    ]
    lines += ["", "Unary answers of server one : two, and the longest time without any, step by step:", ""]
    names = [step["name"] for step in part["rows"][0]["steps"]]
    lines += [
        "| step | " + " | ".join(row["proxy"] for row in part["rows"]) + " |",
        "|---" * (1 + len(part["rows"])) + "|",
    ]
    for number, name in enumerate(names):
        cells = (row["steps"][number] for row in part["rows"])
        shown = map(_share, cells)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def _kubernetes(part: Part) -> list[str]:
    lines = ["## Kubernetes", "", "With " + ", ".join(part["tools"]) + ".", "", "Accepted:", ""]
    lines += [f"* {row}" for row in part["accepted"]]
    lines += ["", "Broken variants, refused:", ""]
    lines += [f"* {row}" for row in part["refused"]]
    lines += ["", *(f"Not run: {row}." for row in part["left_out"]), *(f"Problem: {row}" for row in part["problems"])]
    return lines


def _share(step: Mapping[str, Any]) -> str:
    shares = step["shares"]
    return f"{shares.get('one', 0)} : {shares.get('two', 0)}, {step['longest_gap_seconds']:.2f} s"


def _unit(part: Part) -> list[str]:
    head = ["## systemd", "", _UNIT.format(**part).strip()]
    if part.get("rows"):
        return [*head, _UNIT_RUN, *(f"* {key}: {value}" for key, value in part["rows"].items())]
    why = f": {part['left_out']}" if part.get("left_out") else ""
    return [*head, _UNIT_LINE.format(**part, why=why, limits="; ".join(part["ran"]))]


def _ci(part: Part) -> list[str]:
    head = "The lines of each CI file, run as they stand on the demo model, against a stack that asks for approval:"
    return ["## CI for models", "", head, "", *(f"* {row}" for row in part["ran"])]


def _image(part: Part) -> list[str]:
    return ["## Image", "", *(f"* {key}: {value}" for key, value in part["rows"].items())]


def _ran_on(part: Part) -> str:
    return f"{part['date']}, commit {part['commit']}, {part['machine']}, load {part['load']}; `{part['command']}`."


def _circumstances() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": read_commit(REPORT, PAGE),  # of a run of several parts the report itself has changed
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
    }
