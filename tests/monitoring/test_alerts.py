"""The alerts as data, and the files that are made of them."""

import contextlib
from pathlib import Path

import pytest

from cli.alerts import CATALOGS, RULES, make_pages
from cli.monitoring.catalog import list_alerts
from cli.monitoring.expressions import find_family, find_metrics
from cli.monitoring.recordings import RECORDINGS
from cli.monitoring.rules_file import render_rules
from cli.monitoring.runbooks import FOLDER
from cli.settings import PROJECT_FOLDER
from dev.watch import drill_serving, drill_updates
from dev.watch.rule_cases import find_untested, render_tests
from tests.cli.conftest import Hotslot, _isolate, hotslot  # noqa: F401  fixtures

FOREIGN = {"up"}  # Prometheus's own
EXPRESSIONS = {
    **{row.name: row.expression for row in RECORDINGS},
    **{alert.name: alert.expression for alert in list_alerts()},
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_rule_reads_only_metrics_that_exist(name: str) -> None:
    """Of the server, of the updater, or a recording rule."""
    known = {spec.name for catalog in CATALOGS for spec in catalog.metrics}
    recorded = {row.name for row in RECORDINGS}
    read = find_metrics(EXPRESSIONS[name])

    assert read
    assert sorted(metric for metric in read - recorded - FOREIGN if not find_family(metric, known)) == []


def test_names_and_pages_are_unique() -> None:
    """An alert has a page of its own; `promtool` refuses rules with the same name."""
    names = [row.name for row in RECORDINGS] + [alert.name for alert in list_alerts()]
    pages = [alert.page for alert in list_alerts()]
    assert sorted(set(names)) == sorted(names)
    assert sorted(set(pages)) == sorted(pages)


def test_the_rules_are_up_to_date(hotslot: Hotslot) -> None:  # noqa: F811
    """After a change of an alert, run `hotslot alerts rules > deploy/prometheus/hotslot.rules.yml`."""
    text = (PROJECT_FOLDER / RULES).read_text(encoding="utf-8")
    assert hotslot("alerts", "rules").out == render_rules() == text


def test_the_runbooks_are_up_to_date() -> None:
    """After a change of an alert, a metric or a setting, run `hotslot alerts runbooks docs/runbooks`."""
    folder = PROJECT_FOLDER / FOLDER
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == make_pages()


def test_every_alert_has_samples_with_which_it_fires() -> None:
    """Run by `make test-watch`; made by `python -m dev.watch.rule_cases > deploy/prometheus/hotslot.test.yml`."""
    text = (PROJECT_FOLDER / "deploy/prometheus/hotslot.test.yml").read_text(encoding="utf-8")
    assert find_untested() == []
    assert text == render_tests()


def test_pages_of_alerts_that_are_gone_are_deleted(hotslot: Hotslot, tmp_path: Path) -> None:  # noqa: F811
    """And nothing else ever is."""
    folder = tmp_path / "runbooks"
    folder.mkdir()
    (folder / "gone.md").write_text("old", encoding="utf-8")
    assert hotslot("alerts", "runbooks", str(folder)).code == 0
    assert not (folder / "gone.md").exists()

    (folder / "photo.png").write_bytes(b"x")
    assert hotslot("alerts", "runbooks", str(folder)).code == 1
    assert (folder / "photo.png").exists()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('rate(a_total{x="b_total"}[5m]) > 0 unless c offset 15m', {"a_total", "c"}),
        (
            "sum by (model, le) (rate(a_bucket[1h])) / on (model) group_left () level:b:rate5m",
            {"a_bucket", "level:b:rate5m"},
        ),
        ("time() - a_seconds > 2592000", {"a_seconds"}),
    ],
)
def test_names_are_found_in_an_expression(expression: str, names: set[str]) -> None:
    """Labels, strings, durations and functions are none."""
    assert find_metrics(expression) == names


def test_every_alert_has_a_fault_in_the_drill() -> None:
    """`make drill` provokes them."""
    served = drill_updates.HttpHub(contextlib.ExitStack())
    groups = (
        drill_updates.FAULTS,
        served.faults(),
        drill_updates.ACCESS_FAULTS,
        drill_serving.CARD_FAULTS,
        drill_serving.FAULTS,
    )
    drilled = {name for faults in groups for fault in faults for name in fault.alerts}
    assert drilled == {alert.name for alert in list_alerts()}
