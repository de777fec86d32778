"""The parity environment has what its programs import."""

import ast
import re
import sys
from pathlib import Path

from tests.import_circles import imports_of, read_imports

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "PIL": {"pillow"},
    "google": {"protobuf", "googleapis-common-protos"},
    "pydantic_settings": {"pydantic-settings"},
}  # by imported name, if it differs
IMPORTED_ON_TRUST = {"modelscope"}  # whose own imports are not followed


def test_parity_requirements_cover_the_imports() -> None:
    """Every package that dev/parity imports, directly or through other modules of the project, is pinned for it."""
    edges = read_imports(ROOT, ("common", "dev/parity", "examples/shapes", "inference"))
    reached = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dev" / "parity").glob("*.py")}
    while more := {one.imported for one in edges if one.importer in reached} - reached:
        reached |= more
    names = {
        name.split(".")[0]
        for path in reached
        for name, _ in imports_of(path, ast.parse((ROOT / path).read_text(encoding="utf-8")))
    }
    needed = set().union(*(PACKAGES.get(name, {name}) for name in names if name not in _OWN_OR_STANDARD))

    lines = (ROOT / "dev" / "parity" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert needed - {re.split("==", line)[0].lower() for line in lines} == set()
    assert {"torch", "protobuf", *IMPORTED_ON_TRUST} <= needed


_OWN_OR_STANDARD = {*sys.stdlib_module_names, "common", "dev", "examples", "inference"}
