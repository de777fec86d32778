"""The dashboard as data, and the file that is made of it."""

import json

from cli.alerts import CATALOGS, DASHBOARD
from cli.monitoring.dashboard import build_dashboard, list_queries, render_dashboard
from cli.monitoring.expressions import find_family, find_metrics
from cli.monitoring.recordings import RECORDINGS
from cli.settings import PROJECT_FOLDER
from tests.cli.conftest import Hotslot, _isolate, hotslot  # noqa: F401  fixtures

DCGM = "DCGM_FI_DEV_"  # of NVIDIA's exporter


def test_the_dashboard_is_up_to_date(hotslot: Hotslot) -> None:  # noqa: F811
    """After a change of a panel, run `hotslot alerts dashboard > deploy/grafana/hotslot.json`."""
    text = (PROJECT_FOLDER / DASHBOARD).read_text(encoding="utf-8")
    assert hotslot("alerts", "dashboard").out == render_dashboard() == text


def test_every_query_reads_metrics_that_exist() -> None:
    """Of hotslot, of its recording rules, or of NVIDIA's exporter."""
    known = {spec.name for catalog in CATALOGS for spec in catalog.metrics}
    recorded = {row.name for row in RECORDINGS}
    unknown = {
        (title, name)
        for title, query in list_queries()
        for name in find_metrics(query) - recorded
        if not find_family(name, known) and not name.startswith(DCGM)
    }
    assert unknown == set()


def test_panels_do_not_overlap_and_are_explained() -> None:
    """Ids are unique, places lie in the grid, and each panel says what it is for."""
    panels = json.loads(json.dumps(build_dashboard()))["panels"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells & mine == set(), panel["title"]
        cells |= mine
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_data_source_is_only_a_variable() -> None:
    """So that the dashboard can be imported anywhere."""
    text = render_dashboard()
    assert '"id": null' not in text
    assert {row["datasource"]["uid"] for row in build_dashboard()["panels"] if "datasource" in row} == {"${datasource}"}
