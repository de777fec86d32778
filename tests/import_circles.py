"""Finds circles of imports between folders, at every level of a tree of Python files."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of the tree by another one."""

    importer: str  # path relative to the root, for example "updater/store/journal.py"
    line: int
    imported: str  # path relative to the root


@dataclass(frozen=True, slots=True)
class Circle:
    """A circle of nodes of one folder: a node is a sub-folder with all below it, or one module of the folder."""

    folder: str  # "" for the root
    nodes: tuple[str, ...]  # paths relative to the root, in the order of the imports
    imports: tuple[Import, ...]  # all imports from each node to the next one

    def __str__(self) -> str:
        """The circle, and below it the imports that make it."""
        rows = [f"{self.folder or '.'}: {' -> '.join((*self.nodes, self.nodes[0]))}"]
        rows += [f"    {one.importer}:{one.line} imports {one.imported}" for one in self.imports]
        return "\n".join(rows)


def imports_of(path: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported name in full, with its line: `from a import b` is a.b.

    All imports count: those within functions and under TYPE_CHECKING too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            base = ".".join([*package, node.module] if node.module else package)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def read_imports(root: Path, folders: Iterable[str]) -> list[Import]:
    """All imports between modules of these folders of a root."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    found = set()
    for path, text in texts.items():
        for name, line in imports_of(path, ast.parse(text, path)):
            imported = _module_of(name, texts)
            if imported is not None and imported != path:
                found.add(Import(path, line, imported))
    return sorted(found, key=lambda one: (one.importer, one.line, one.imported))


def find_circles(imports: Iterable[Import]) -> list[Circle]:
    """For every folder, the shortest circle through each import between its nodes; empty if there is none."""
    edges: dict[str, dict[tuple[str, str], list[Import]]] = {}
    for one in imports:
        folder, pair = _where_they_part(one)
        edges.setdefault(folder, {}).setdefault(pair, []).append(one)
    return [circle for folder in sorted(edges) for circle in _circles_in(folder, edges[folder])]


def _module_of(name: str, modules: Mapping[str, str]) -> str | None:
    """Path of the module that a full name lies in or is; None if it is none of the tree."""
    parts = name.split(".")
    for size in (len(parts), len(parts) - 1):
        base = "/".join(parts[:size])
        found = next((path for path in (f"{base}.py", f"{base}/__init__.py") if path in modules), None)
        if found is not None:
            return found
    return None


def _where_they_part(one: Import) -> tuple[str, tuple[str, str]]:
    """The deepest folder that holds both modules, and the node of each in it."""
    importer, imported = PurePosixPath(one.importer).parts, PurePosixPath(one.imported).parts
    depth = next(index for index in range(len(importer)) if importer[index] != imported[index])
    folder = "/".join(importer[:depth])
    return folder, ("/".join(importer[: depth + 1]), "/".join(imported[: depth + 1]))


def _circles_in(folder: str, edges: Mapping[tuple[str, str], list[Import]]) -> Iterator[Circle]:
    targets: dict[str, list[str]] = {}
    for importer, imported in sorted(edges):
        targets.setdefault(importer, []).append(imported)
    reported: set[frozenset[str]] = set()
    for importer, imported in sorted(edges):
        back = _shortest_path(imported, importer, targets)
        if back and frozenset(back) not in reported:
            reported.add(frozenset(back))
            nodes = (importer, *back[:-1])
            pairs = zip(nodes, (*nodes[1:], importer), strict=True)
            yield Circle(folder, nodes, tuple(one for pair in pairs for one in edges[pair]))


def _shortest_path(start: str, end: str, targets: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Both ends and the nodes between them; empty if no path leads there."""
    paths: list[tuple[str, ...]] = [(start,)]
    seen = {start}
    for path in paths:  # grows while it is read: breadth first
        if path[-1] == end:
            return path
        for node in targets.get(path[-1], []):
            if node not in seen:
                seen.add(node)
                paths.append((*path, node))
    return ()
