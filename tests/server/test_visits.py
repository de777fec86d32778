"""How many files of the server a reader must open to follow one Predict."""

from pathlib import Path

from tests.server.visits import list_server_files

MAX_FILES = 18


async def test_a_predict_visits_few_files(tmp_path: Path) -> None:
    """From the interceptor to the answer, without the runner's process: `python -m dev.scripts.visited` lists them."""
    files = await list_server_files(tmp_path)

    assert files[0] == "inference/server/api/interceptors.py"
    assert len(files) <= MAX_FILES
