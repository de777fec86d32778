"""docs/faults.md says where each fault is provoked."""

from scripts import faults


def test_the_page_of_faults_is_fresh() -> None:
    """docs/faults.md is what the tests' marks say; `python -m scripts.faults` writes it."""
    assert faults.PAGE.read_text() == faults.render()
