"""The page of a load report."""

from xml.etree import ElementTree as ET

from dev.production.load_page import LoadPage, Mark, draw_answers, draw_latency, render_page

POINTS = [(0.1 * number, 0.01 if number != 50 else 2.0, "v1" if number < 60 else "v2") for number in range(100)]
MARKS = [Mark(5.0, "runner killed"), Mark(6.0, "v2 <committed>")]


def texts(chart: str) -> list[str]:
    """The words in a chart, which must be well-formed."""
    return [str(one.text) for one in ET.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314  ours


def test_swaps_and_kills_are_marked_in_both_charts() -> None:
    """At their time, with their name as it is."""
    for chart in (draw_latency(POINTS, MARKS), draw_answers(POINTS, MARKS)):
        assert {"runner killed", "v2 <committed>"} <= set(texts(chart))


def test_each_revision_has_its_line() -> None:
    """And no other does."""
    assert {"v1", "v2"} <= set(texts(draw_answers(POINTS, [])))


def test_a_run_without_answers_has_a_page() -> None:
    """It says what failed."""
    page = render_page(LoadPage("nothing", "here", [], [], ["UNAVAILABLE <x>"]))

    assert "UNAVAILABLE &lt;x&gt;" in page
