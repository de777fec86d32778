"""Prints the software of an image as CycloneDX 1.5: Debian's packages and the Python distributions of one environment.

python dev/scripts/sbom.py > sbom.cdx.json, with the Python of that environment; it uses the standard library alone.
"""

import json
import subprocess
from importlib.metadata import distributions


def python_components() -> list[dict[str, object]]:
    """Every installed distribution, with the license that it declares."""
    rows: dict[str, dict[str, object]] = {}
    for one in distributions():
        name, version = one.metadata["Name"], one.version
        row: dict[str, object] = {"type": "library", "name": name, "version": version}
        row["purl"] = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        declared = next((one.metadata[key] for key in ("License-Expression", "License") if key in one.metadata), "")
        if declared and "\n" not in declared:
            row["licenses"] = [{"license": {"name": declared[:100]}}]
        rows[name] = row
    return [rows[name] for name in sorted(rows)]


def debian_components() -> list[dict[str, object]]:
    """Every installed package; none where there is no dpkg."""
    try:
        command = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        return []
    rows = (line.split() for line in lines)
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}?arch={arch}"}
        for name, version, arch in rows
    ]


if __name__ == "__main__":
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1}
    print(json.dumps({**document, "components": [*debian_components(), *python_components()]}, indent=1))
