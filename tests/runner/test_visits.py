"""How many files of the runner a reader must open to follow one Predict."""

from pathlib import Path

from tests.runner.visits import list_runner_files

MAX_FILES = 9


async def test_a_predict_visits_few_files_of_the_runner(tmp_path: Path) -> None:
    """From the frame to the reply, engines left out: `python -m dev.scripts.visited` lists them."""
    files = await list_runner_files(tmp_path)

    assert "inference/runner/calls.py" in files
    # A heartbeat, which a busy machine brings into this time, reads the tally of pictures.
    assert len([name for name in files if name != "inference/runner/pictures/tally.py"]) <= MAX_FILES
