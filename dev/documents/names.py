"""The names that pages put in backticks: commands, make targets, paths, metrics, settings, identifiers of the code."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cli.alerts import CATALOGS
from cli.config import list_settings
from cli.monitoring.expressions import find_family
from dev.documents.blocks import ROOT, strip_blocks
from dev.documents.commands import find_mistake, split_commands

_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_METRIC = re.compile(r"hotslot_[a-z0-9_]+")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)+|[A-Z][a-z]+(?:[A-Z][a-z]+)+")
_PATH = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.*-]+)+/?")
_KEY = re.compile(r"[a-z][a-z_]*(?:\.[a-zA-Z_]+)+")
_MADE = (".venv", ".tools", ".bench", "dist", "state", "hotslot")  # by make, by what runs, or a package of a contract
_GROWING = frozenset({"CHANGELOG.md"})  # tells of names that are gone
# What other programs call by these names.
FOREIGN = frozenset(
    {
        *("O_DIRECT", "CLONE_PARENT", "SSL_CERT_FILE"),  # of Linux; of OpenSSL
        *("maximum_concurrent_rpcs", "pick_first", "compression_algorithm"),  # of gRPC; of Triton's client
        *("ModelConfig", "ModelStatistics", "ModelStreamInfer", "RepositoryIndex", "RepositoryModelLoad"),  # of Triton
        "channel_args",  # of Triton's client
        *("max_queue_delay", "wechat_configs", "list_revisions"),  # of Triton; of Alertmanager; of ModelScope's SDK
    }
)


def find_unknown(page: str, text: str) -> list[str]:
    """What a page names and the project does not have."""
    if page in _GROWING:
        return []
    found = [problem for span in list_spans(text) for problem in _check(span)]
    return sorted(set(found))


def list_spans(text: str) -> Iterator[str]:
    """Everything in backticks outside blocks."""
    yield from _SPAN.findall(strip_blocks(text))


def _check(span: str) -> Iterator[str]:
    first = span.split(" ", maxsplit=1)[0].rsplit("/", 1)[-1]
    if first in {"hotslot", "make"} and " " in span:
        problem = _check_command(span)
        if problem:
            yield f"`{span}`: {problem}"
        return
    if _METRIC.fullmatch(span):
        known, what = bool(find_family(span, metrics())) or span in words(), "metric"
    elif _IDENTIFIER.fullmatch(span):
        known, what = span in words() | FOREIGN, "identifier (if it is another program's, name it in FOREIGN):"
    elif _KEY.fullmatch(span) and span.split(".", maxsplit=1)[0] in sections():
        known, what = is_setting(span) or set(span.split(".")) <= words(), "setting"
    else:
        known, what = not _is_path(span) or _exists(span), "path"
    if not known:
        yield f"{what} {span}"


def _is_path(span: str) -> bool:
    """Whether it looks like a path of the repository."""
    top = span.split("/", maxsplit=1)[0]
    return bool(_PATH.fullmatch(span)) and (ROOT / top).is_dir() and top not in _MADE


def _exists(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/"))) or any(ROOT.glob(f"{path}.*"))


def _check_command(span: str) -> str:
    try:
        return next((found for words in split_commands(span) if (found := find_mistake(words, whole=False))), "")
    except ValueError:
        return "a quotation has no end"


@cache
def metrics() -> frozenset[str]:
    """All metrics of all processes."""
    return frozenset(spec.name for catalog in CATALOGS for spec in catalog.metrics)


@cache
def settings() -> frozenset[str]:
    """All keys of hotslot.toml, without marks of lists and the place of a model's name."""
    return frozenset(re.sub(r"\[\]|\.NAME", "", row.key) for row in list_settings())


@cache
def sections() -> frozenset[str]:
    """The first parts of all keys."""
    return frozenset(key.split(".")[0] for key in settings())


def is_setting(key: str) -> bool:
    """Whether the settings have this key, or a table of this name."""
    plain = key.replace(".NAME", "")
    return any(one == plain or one.startswith(f"{plain}.") for one in settings())


@cache
def words() -> frozenset[str]:
    """Every identifier of every file that is no page."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: set[str] = set()
    for name in listed.stdout.splitlines():
        path = ROOT / name
        is_code = path.suffix in _CODE and not name.startswith("tests/docs/")  # which name what does not exist
        if is_code and path.is_file() and path.stat().st_size < _MAX_BYTES:
            found.update(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", path.read_text("utf-8", "replace")))
            found.add(Path(name).stem)
    return frozenset(found)


_CODE = frozenset(
    {".py", ".pyi", ".proto", ".toml", ".go", ".java", ".conf", ".yaml", ".yml", ".sh", ".txt", ".cfg", ".in", ""}
)
_MAX_BYTES = 1 << 20
