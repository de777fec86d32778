"""The page of all metrics."""

from cli.metrics import DOCS, render_reference
from cli.settings import PROJECT_FOLDER
from inference.server.metric_catalog import CATALOG as SERVER
from tests.cli.conftest import Hotslot
from updater.metric_catalog import CATALOG as UPDATER


def test_the_reference_in_the_docs_is_up_to_date(hotslot: Hotslot) -> None:
    """After a change of a metric, run `hotslot metrics reference > docs/metrics.md`."""
    page = (PROJECT_FOLDER / DOCS).read_text(encoding="utf-8")
    assert render_reference() == page == hotslot("metrics", "reference").out


def test_every_metric_and_label_is_explained() -> None:
    """With a meaning, with its use, and with each of its labels."""
    for catalog in (SERVER, UPDATER):
        names = [spec.name for spec in catalog.metrics]
        assert sorted(set(names)) == sorted(names)
        assert [spec.name for spec in catalog.metrics if not (spec.meaning and spec.use)] == []
        assert [label for spec in catalog.metrics for label in spec.labels if not catalog.labels.get(label)] == []


def test_server_and_updater_export_nothing_twice() -> None:
    """Only the facts about a process are of both."""
    both = {spec.name for spec in SERVER.metrics} & {spec.name for spec in UPDATER.metrics}
    assert {name for name in both if not name.startswith("process_")} == {
        "hotslot_build_info",
        "hotslot_settings_loaded_timestamp_seconds",
        "hotslot_settings_reload_successful",
    }
