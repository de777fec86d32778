"""How many files of core and stages a reader must open to follow a decision of the updater."""

from tests.updater.core.visits import list_update_files

MAX_FILES = 12  # at rest: what is broken or lost, a failback, and the choice of a revision


def test_a_decision_visits_few_files() -> None:
    """Each step of an update, from the record to the next record: `python -m dev.scripts.visited` lists them."""
    files = list_update_files()

    assert "updater/stages/machine.py" in files.most
    assert len(files.most) <= MAX_FILES
