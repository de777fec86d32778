"""The rules of the rooms: who may import what, and how large things get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.import_circles import find_circles, imports_of, read_imports

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "inference", "updater", "hotslot_watchdog", "hubserver", "console", "cli")
PROJECT = {*ROOMS, "hotslot", "examples", "tests", "dev"}

# Room → the project's own top-level packages that it may import, beside itself.
MAY_IMPORT: dict[str, set[str]] = {
    "common": set(),
    "inference": {"common", "hotslot"},
    "updater": {"common", "hotslot"},
    "hotslot_watchdog": {"common", "hotslot"},
    "hubserver": {"common"},
    "console": {"common", "hotslot"},
    "cli": {"common", "hotslot", "hubserver", "console"},
}
HTTP_CLIENTS = {
    "httpx",
    "requests",
    "urllib3",
    "aiohttp",
    "http.client",
    "urllib.request",
    "modelscope",
    "modelscope_hub",
}
WALL_CLOCK_CALLS = {"now", "utcnow", "today"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40  # without its docstring
# What is larger, and why it is better so.
LARGE_FILES: dict[str, str] = {
    "inference/server/model/requests.py": "every rule of 'a trial costs no answer' stands in one file",
}
LARGE_FUNCTIONS: dict[str, str] = {}


@dataclass(frozen=True)
class Source:
    """One module of a room."""

    path: str  # relative to the root, for example "inference/server/server.py"
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder at the top."""
        return self.path.split("/", 1)[0]

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every imported name in full, with its line: `from a import b` is a.b."""
        yield from imports_of(self.path, self.tree)

    def functions(self) -> Iterator[tuple[str, int]]:
        """Every function by its full name, with its lines less its docstring."""
        yield from _functions(self.tree, f"{self.path}:")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = child.body[0]
            is_docstring = ast.get_docstring(child) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
            yield prefix + child.name, (child.end_lineno or 0) - child.lineno + 1 - docstring
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


@cache
def sources() -> tuple[Source, ...]:
    """All modules of all rooms."""
    paths = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    assert paths
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        found.append(Source(str(path.relative_to(ROOT)), text, ast.parse(text, str(path))))
    return tuple(found)


def is_within(name: str, packages: set[str]) -> bool:
    """Whether a full name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def users_of(packages: set[str], *, except_in: tuple[str, ...]) -> list[str]:
    """Where the packages are imported outside the allowed places (a folder ends with a slash)."""
    return [
        f"{source.path}:{line} imports {name}"
        for source in sources()
        if not any(
            source.path == place or (place.endswith("/") and source.path.startswith(place)) for place in except_in
        )
        for name, line in source.imports()
        if is_within(name, packages)
    ]


def test_rooms_import_only_the_ground_they_stand_on() -> None:
    """`inference` and `updater` meet only in `common` and `hotslot`; `common` knows nobody."""
    broken = [
        f"{source.path}:{line} imports {name}"
        for source in sources()
        for name, line in source.imports()
        if (top := name.split(".")[0]) in PROJECT
        and top not in MAY_IMPORT[source.room] | {source.room}
        # What a room can be told, and what it measures, belongs to its surface: the command line documents it.
        and not (source.room == "cli" and {"settings", "metric_catalog"} & set(name.split(".")))
        # They ask a hub with the adapters of the updater, read only, and back up its journal.
        # The one HTTP client.
        and not (source.path == "cli/monitoring/relay/http_send.py" and name.startswith("updater.http."))
        and not (source.path in {"cli/hub_doctor.py", "cli/state.py", "cli/doctor_remote.py"} and top == "updater")
    ]
    assert broken == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    """At every level of the whole checkout: tests import programs, and no program imports tests."""
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    assert {*ROOMS, "dev", "examples", "tests"} <= folders
    circles = find_circles(read_imports(ROOT, folders))
    assert not circles, "\n".join(map(str, circles))


def test_server_and_runner_meet_only_in_wire() -> None:
    """Torch's process and the callers' process share frames, nothing else."""
    assert users_of({"inference.runner"}, except_in=("inference/runner/",)) == []
    assert [row for row in users_of({"inference.server"}, except_in=("inference/server/",)) if "cli/" not in row] == []


def test_wire_knows_neither_side() -> None:
    """What both stand on stands on neither."""
    both = {"inference.server", "inference.runner"}
    wire = [source for source in sources() if source.path == "inference/wire.py"]
    assert wire
    assert [name for source in wire for name, _ in source.imports() if is_within(name, both)] == []


def test_torch_lives_only_in_the_runner() -> None:
    """No other process pays for it, and none can be taken down by it."""
    assert users_of({"torch", "torchvision"}, except_in=("inference/runner/",)) == []


def test_only_the_hub_adapter_and_webhooks_speak_http() -> None:
    """Nothing that serves can reach out; webhooks and the hub share one client."""
    assert users_of(HTTP_CLIENTS, except_in=("updater/hub/", "updater/http/")) == []
    assert users_of({"urllib3", "http.client"}, except_in=("updater/http/",)) == []


def test_only_metrics_modules_import_the_metrics_library() -> None:
    """They are `metrics.py` of a room and the endpoint."""
    assert [
        row
        for row in users_of({"prometheus_client"}, except_in=("common/metrics_endpoint.py",))
        if "/metrics.py:" not in row
    ] == []


def test_the_environment_is_read_only_in_settings() -> None:
    """Every other part is given the values that it uses."""
    broken = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        if not source.path.endswith("/settings.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("os", "environ"), ("os", "environb"), ("os", "getenv"), ("os", "putenv")}
    ]
    names = {"os.environ", "os.environb", "os.getenv"}
    assert broken + [row for row in users_of(names, except_in=()) if "/settings.py:" not in row] == []


def test_the_clock_is_read_only_in_one_place() -> None:
    """Time is an argument everywhere else."""
    calls = [
        f"{source.path}:{node.lineno} calls {ast.unparse(node)}"
        for source in sources()
        if source.path != "common/clock.py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in WALL_CLOCK_CALLS
        and ast.unparse(node.value) in {"datetime", "datetime.datetime", "date", "datetime.date"}
    ]
    assert calls + users_of({"time"}, except_in=("common/clock.py",)) == []


@pytest.mark.parametrize(
    "module",
    [
        "inference.server.main",
        "inference.server.server",
        "updater.daemon",
        "hotslot_watchdog.__main__",
        "hotslot_watchdog.stack",
        "cli.main",
    ],
)
def test_only_a_runner_process_loads_torch(module: str) -> None:
    """Nothing that is imported on the way brings torch, the hub or another room's weight in."""
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert {"torch", "numpy", "modelscope", "modelscope_hub", "inference.runner"} & set(done.stdout.split()) == set()


def test_an_updater_that_speaks_no_http_loads_no_http_library() -> None:
    """With a folder as its hub, and without webhooks, it saves the memory."""
    program = "import sys, updater.daemon; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert {"urllib3", "modelscope_hub"} & set(done.stdout.split()) == set()


def test_the_whole_updater_knows_no_torch() -> None:
    """Not even with a hub: ModelScope's small client is used, never the library that brings torch."""
    modules = [source.path.removesuffix(".py").replace("/", ".") for source in sources() if source.room == "updater"]
    assert "updater.hub.modelscope" in modules
    program = f"import sys, {', '.join(modules)}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert {"urllib3", "modelscope_hub", "torch", "modelscope", "numpy"} & set(done.stdout.split()) == {
        "urllib3",
        "modelscope_hub",
    }


def test_files_are_short_or_say_why_not() -> None:
    """A file tells one thing."""
    lengths = {source.path: source.text.count("\n") for source in sources()}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES and path not in LARGE_FILES} == {}
    assert [path for path in LARGE_FILES if lengths.get(path, 0) <= MAX_FILE_LINES] == [], (
        "no exception needed any more"
    )


def test_functions_are_short_or_say_why_not() -> None:
    """A function does one step."""
    lengths = dict(function for source in sources() for function in source.functions())
    assert {
        name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES and name not in LARGE_FUNCTIONS
    } == {}
    unneeded = [name for name in LARGE_FUNCTIONS if lengths.get(name, 0) <= MAX_FUNCTION_LINES]
    assert unneeded == [], "no exception needed any more"
