"""Defaults that sentences quote, as in "`runner.silence_seconds` (2 s)", are those of the settings."""

import re

import pytest

from dev.documents.blocks import ROOT, list_pages, strip_blocks

_SECTION = re.compile(r"^## `?\[*([\w.]*)", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \|.*\| `([^`|]*)`(?: \([^)]*\))? \| (?:at once|models|restart) \|", re.MULTILINE)
_QUOTED = re.compile(r"`([a-z][a-z_.]+)`[^`.|;]{0,20}?\((\d[\d,]*(?:\.\d+)?)(?: ?(s|\u79d2|GiB|MiB|%))?[);,]")
_WIDE = {0xFF08: "(", 0xFF09: ")", 0xFF0C: ",", 0xFF1B: ";", 0x3002: "."}  # of the Chinese pages
_UNITS = {"": 1.0, "s": 1.0, "\u79d2": 1.0, "MiB": 2.0**20, "GiB": 2.0**30, "%": 0.01}


def read_defaults() -> dict[str, float]:
    """Key, with its section and without, → default, of every setting that is a number."""
    found: dict[str, float] = {}
    parts = _SECTION.split((ROOT / "docs/configuration.md").read_text("utf-8"))
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        for key, default in _ROW.findall(body):
            if re.fullmatch(r"[\d.]+", default):
                place = section.removeprefix("updater.models.NAME").strip(".")
                found[f"{place}.{key}"] = float(default)
                found.setdefault(key, float(default))
    return found


def list_wrong(text: str, defaults: dict[str, float]) -> list[str]:
    """What a page quotes otherwise."""
    return [
        f"`{key}` is {defaults[key]:g}, not {number} {unit}".strip()
        for key, number, unit in _QUOTED.findall(strip_blocks(text).translate(_WIDE))
        if key in defaults and abs(float(number.replace(",", "")) * _UNITS[unit] - defaults[key]) > 1e-9
    ]


@pytest.fixture(scope="module")
def defaults() -> dict[str, float]:
    """Of the settings."""
    return read_defaults()


def test_quoted_defaults_are_those_of_the_settings(defaults: dict[str, float]) -> None:
    """On every page, in both languages."""
    wrong = {str(page.relative_to(ROOT)): list_wrong(page.read_text("utf-8"), defaults) for page in list_pages()}
    assert {page: found for page, found in wrong.items() if found} == {}


def test_a_wrong_default_is_found(defaults: dict[str, float]) -> None:
    """With and without its section, in seconds, in bytes and in percent."""
    text = (
        "`runner.silence_seconds` (3 s), `updater.reserve_bytes` (1 GiB), `false_alarms` (5 %), `silence_seconds` (2 s)"
    )
    assert list_wrong(text, defaults) == ["`runner.silence_seconds` is 2, not 3 s", "`false_alarms` is 0.02, not 5 %"]
