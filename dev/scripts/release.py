"""Versions and artefacts of a release: `make release-dry-run` builds everything into dist/ and publishes nothing.

python -m dev.scripts.release               builds, after checking that all versions and addresses are equal
python -m dev.scripts.release --check       checks the versions and the addresses of the project only
python -m dev.scripts.release --set 0.3.0   writes a version to every place
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
# Every place that names the version, with what stands before and behind it.
PLACES: Mapping[str, str] = {
    "pyproject.toml": r'(?m)^(version = ")([^"]+)(")',
    "clients/python/pyproject.toml": r'(?m)^(version = ")([^"]+)(")',
    "clients/python/src/hotslot_client/__init__.py": r'(?m)^(__version__ = ")([^"]+)(")',
    "clients/java/pom.xml": r"(<artifactId>hotslot-client</artifactId>\s*<version>)([^<]+)(</version>)",
    "deploy/Containerfile": r'(ARG VERSION=")([^"]+)(")',
    "deploy/kubernetes/base/kustomization.yaml": r"(newTag: )(\S+)()",
    "docs/how-to/call-from-go.md": r"(hotslot\.io/client-go@v)([\d.]+)( )",
    "docs/how-to/call-from-java.md": r"(<artifactId>hotslot-client</artifactId>\s*<version>)([^<]+)(</version>)",
    "CHANGELOG.md": r"(?m)^(## )(\d\S*)()",
}
# What is published with an address of the project, with where it stands; pyproject.toml has the right ones.
HOMES: Mapping[str, str] = {
    "clients/python/pyproject.toml": r'(?m)^\w+ = "(https?://[^"]+)"',
    "clients/python/README.md": r"\[hotslot\]\(([^)]+)\)",
    "clients/java/pom.xml": r"(https?://[^<]*hotslot[^<]*)<",
}
GO_MODULE = "clients/go"  # a module in a folder is released by a tag with the folder's name
_SECTION = r"(?ms)^## {version}.*?\n(.*?)(?=^## |\Z)"


def read_versions() -> dict[str, str]:
    """Place → the version that it names; empty if it names none."""
    found = {}
    for place, pattern in PLACES.items():
        match = re.search(pattern, (ROOT / place).read_text("utf-8"))
        found[place] = match[2] if match else ""
    return found


def list_mistakes(versions: Mapping[str, str]) -> list[str]:
    """The places that differ from pyproject.toml."""
    expected = versions["pyproject.toml"]
    return [
        f"{place} has {version or 'no version'}, not {expected}"
        for place, version in versions.items()
        if version != expected
    ]


def list_foreign_homes(home: str, source: str, texts: Mapping[str, str]) -> list[str]:
    """What names another address than the project's, or none; Go's import path and Maven's group are its host.

    Args:
        home: URL of the project.
        source: URL of its repository.
        texts: of the files of HOMES, by path, and of clients/go/go.mod.
    """
    found = []
    for place, pattern in HOMES.items():
        addresses = re.findall(pattern, texts[place])
        other = [address for address in addresses if address not in {home, source, f"{source}.git"}]
        found += [f"{place} has {', '.join(other) or 'no address'}, not {home}"] if other or not addresses else []
    host = home.removeprefix("https://")
    group = ".".join(reversed(host.split(".")))
    expected = {
        "clients/go/go.mod": f"module {host}/client-go\n",
        "clients/java/pom.xml": f"<groupId>{group}</groupId>",
    }
    return found + [f"{place} has no {text.strip()}" for place, text in expected.items() if text not in texts[place]]


def find_foreign_homes() -> list[str]:
    """The places whose address of the project differs from pyproject.toml's."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    texts = {place: (ROOT / place).read_text("utf-8") for place in (*HOMES, "clients/go/go.mod")}
    return list_foreign_homes(urls["Homepage"], urls["Source"], texts)


def replace_version(text: str, pattern: str, version: str) -> str:
    """A file's text with another version at its place."""
    return re.sub(pattern, lambda found: f"{found[1]}{version}{found[3]}", text, count=1)


def list_tags(version: str) -> list[str]:
    """The tags of a release: the project's, and the Go module's, which `go get` resolves."""
    return [f"v{version}", f"{GO_MODULE}/v{version}"]


def read_notes(version: str, changelog: str) -> str:
    """The section of a version in the changelog; empty if there is none."""
    found = re.search(_SECTION.replace("{version}", re.escape(version)), changelog)
    return found[1].strip() + "\n" if found else ""


def write_checksums(folder: Path) -> Path:
    """SHA256SUMS of every file of a folder, as `sha256sum --check` reads it."""
    target = folder / "SHA256SUMS"
    files = sorted(path for path in folder.iterdir() if path.is_file() and path != target)
    rows = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    target.write_text("".join(rows), "utf-8")
    return target


def build(version: str, folder: Path) -> None:
    """All artefacts of a version in a folder, which is emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in (ROOT, ROOT / "clients/python"):
        _run([sys.executable, "-m", "hatchling", "build", "--directory", str(folder)], source)
    _build_java(folder)
    _run(
        ["git", "archive", "--format=tar.gz", f"--output={folder}/client-go-{version}.tar.gz", f"HEAD:{GO_MODULE}"],
        ROOT,
    )
    with (folder / f"hotslot-{version}.cdx.json").open("w") as file:
        subprocess.run([sys.executable, str(ROOT / "dev/scripts/sbom.py")], stdout=file, check=True)
    (folder / "NOTES.md").write_text(read_notes(version, (ROOT / "CHANGELOG.md").read_text("utf-8")), "utf-8")
    write_checksums(folder)


def _build_java(folder: Path) -> None:
    if shutil.which("mvn") is None:
        print("no Maven here: the Java client's jars are left out")
        return
    with tempfile.TemporaryDirectory() as place:
        # A copy: Maven writes beside its sources, which reach into protos/.
        copy = Path(place) / "tree"
        for part in ("clients/java", "protos", "dev/third_party/googleapis"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("target", "__pycache__"))
        shutil.copy(ROOT / "LICENSE", copy)
        _run(["mvn", "-B", "-ntp", "-q", "-f", str(copy / "clients/java/pom.xml"), "package", "-DskipTests"], ROOT)
        for jar in (copy / "clients/java/target").glob("*.jar"):
            if not jar.name.startswith("original-"):
                shutil.copy(jar, folder)


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, set or build; the exit code is 1 if versions or addresses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--set", metavar="VERSION", default="")
    chosen = parser.parse_args(arguments)
    if chosen.set:
        for place, pattern in PLACES.items():
            path = ROOT / place
            path.write_text(replace_version(path.read_text("utf-8"), pattern, chosen.set), "utf-8")
    versions = read_versions()
    mistakes = list_mistakes(versions) + find_foreign_homes()
    if mistakes:
        print("\n".join(mistakes))
        return 1
    version = versions["pyproject.toml"]
    if not (chosen.check or chosen.set):
        build(version, DIST)
        print("\n".join(f"{path.stat().st_size:>12,}  {path.name}" for path in sorted(DIST.iterdir())))
        print(f"nothing was published; tags of this release: {', '.join(list_tags(version))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
