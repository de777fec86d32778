"""`make test-deploy`: runs what deploy/ ships, and writes docs/deploy-report.json and its page."""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dev.production.balanced import tell_story
from dev.production.manifests import check_manifests
from dev.production.pipeline import check_pipeline
from dev.production.proxies import PROXIES
from dev.production.report import write_part
from dev.production.unit import check_unit

_NUMBER = re.compile(r"(\d+\.\d+\.\d+)")


def main() -> int:
    """Run the chosen parts; 1 if one has a problem."""
    parser = argparse.ArgumentParser(prog="make test-deploy", description="Runs what deploy/ ships on this machine.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    options = parser.parse_args()
    problems = []
    for name in options.parts or PARTS:
        print(f"{name} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
            Path(folder).chmod(0o755)
            content, found = PARTS[name](Path(folder))
        write_part(name, {**content, "command": f"make test-deploy ARGS={name}"})
        problems += [f"{name}: {problem}" for problem in found]
    print("\n".join(problems) or "all is well: docs/deploy-report.md")
    return 1 if problems else 0


def _run_proxies(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    rows, problems = [], []
    for proxy in PROXIES:
        place = folder / proxy.name
        place.mkdir()
        row = tell_story(proxy, _version_of(proxy.name, proxy.program), place)
        print(
            f"{proxy.name}: {row.calls} calls, {row.items} items, {len(row.failed)} failed, {row.wrong} wrong",
            flush=True,
        )
        problems += [f"{proxy.name}: {line}" for line in row.failed]
        problems += [f"{proxy.name}: {row.wrong} wrong answers"] if row.wrong else []
        rows.append(asdict(row))
    return {"rows": rows}, problems


def _run_kubernetes(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    report = check_manifests(folder)
    return asdict(report), report.problems


def _run_systemd(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    report = check_unit(folder)
    return asdict(report), report.problems


def _run_ci(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    report = check_pipeline(folder)
    return asdict(report), report.problems


def _version_of(name: str, program: str) -> str:
    done = subprocess.run(
        [program, "--version" if name == "envoy" else "-v"], capture_output=True, text=True, check=False
    )
    found = _NUMBER.search(done.stdout + done.stderr)
    return found[1] if found else ""


PARTS: dict[str, Callable[[Path], tuple[Mapping[str, Any], list[str]]]] = {
    "proxies": _run_proxies,
    "kubernetes": _run_kubernetes,
    "systemd": _run_systemd,
    "ci": _run_ci,
}

if __name__ == "__main__":
    sys.exit(main())
