"""The checker of circles between folders, on made-up trees."""

from pathlib import Path
from textwrap import dedent

import pytest

from tests.import_circles import Circle, find_circles, read_imports


def circles_of(root: Path, files: dict[str, str]) -> list[Circle]:
    """Write a tree, and look for circles in it."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(dedent(text))
    return find_circles(read_imports(root, sorted({path.split("/")[0] for path in files})))


def nodes_of(root: Path, files: dict[str, str]) -> list[tuple[str, ...]]:
    """The nodes of all circles of a tree."""
    return [circle.nodes for circle in circles_of(root, files)]


def test_a_circle_is_shown_with_the_imports_that_make_it(tmp_path: Path) -> None:
    """A module of the parent and a sub-folder, by way of two modules of the sub-folder."""
    files = {
        "app/settings.py": "from app.hub.address import parse\n",
        "app/hub/address.py": "def parse(): ...\n",
        "app/hub/open.py": "import json\nfrom app.settings import Section, check\n",
    }
    (circle,) = circles_of(tmp_path, files)
    assert str(circle).splitlines() == [
        "app: app/hub -> app/settings.py -> app/hub",
        "    app/hub/open.py:2 imports app/settings.py",
        "    app/settings.py:1 imports app/hub/address.py",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "import app.hub.client",
        "from app.hub import client",
        "from app.hub.client import get",
        "from ..hub import client",
        "from ..hub.client import get",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.hub.client import get",
        "def late():\n    from app.hub import client",
        "try:\n    import app.hub.client as client\nexcept ImportError:\n    client = None",
    ],
)
def test_every_form_of_an_import_counts(tmp_path: Path, statement: str) -> None:
    """Those for types alone and those within functions too: they hide a circle, and do not remove it."""
    files = {"app/hub/client.py": "from app.store import disk\n", "app/store/disk.py": f"{statement}\n"}
    assert nodes_of(tmp_path, files) == [("app/hub", "app/store")]


def test_a_package_is_its_init_file(tmp_path: Path) -> None:
    """What it defines is imported from its folder."""
    files = {"app/hub/__init__.py": "from app.store import disk\n", "app/store/disk.py": "from app.hub import get\n"}
    assert nodes_of(tmp_path, files) == [("app/hub", "app/store")]


def test_a_circle_may_have_many_folders(tmp_path: Path) -> None:
    """And modules of the parent between them."""
    files = {
        "app/a/one.py": "import app.b.one\n",
        "app/b/two.py": "import app.between\n",
        "app/b/one.py": "",
        "app/between.py": "import app.c.deep.one\n",
        "app/c/deep/one.py": "",
        "app/c/two.py": "import app.a.two\n",
        "app/a/two.py": "",
    }
    assert nodes_of(tmp_path, files) == [("app/a", "app/b", "app/between.py", "app/c")]


@pytest.mark.parametrize("folder", ["", "x/", "x/y/z/"])
def test_every_level_is_looked_at(tmp_path: Path, folder: str) -> None:
    """The top and the depths."""
    name = folder.replace("/", ".")
    files = {f"{folder}a/one.py": f"import {name}b.one\n", f"{folder}b/one.py": f"import {name}a.two\n"}
    files[f"{folder}a/two.py"] = ""
    assert nodes_of(tmp_path, files) == [(f"{folder}a", f"{folder}b")]


def test_each_circle_is_shown_once(tmp_path: Path) -> None:
    """Two that share a folder are two."""
    files = {
        "app/a/one.py": "import app.b.one\nimport app.c.one\n",
        "app/b/one.py": "import app.a.one\n",
        "app/c/one.py": "import app.a.one\n",
    }
    assert nodes_of(tmp_path, files) == [("app/a", "app/b"), ("app/a", "app/c")]


def test_a_tree_without_circles_has_none(tmp_path: Path) -> None:
    """A folder may use another's modules, the parent's, and libraries that share a name with one of ours."""
    files = {
        "app/main.py": "import app.hub.client, app.store.disk\n",
        "app/hub/client.py": "import app.ports, http.client\nfrom app.hub.rules import allow\n",
        "app/hub/rules.py": "from app.ports import Hub\n",
        "app/store/disk.py": "from app.hub import client\nfrom app.ports import Store\n",
        "app/ports.py": "import json\nimport client\n",
    }
    assert nodes_of(tmp_path, files) == []
