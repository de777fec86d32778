"""`hotslot hub serve` as operators and ModelScope's own clients have it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.hub import publish
from cli.hub_serve import serve_hub_while
from cli.problems import CommandFailed
from common.tokens import make_entry, write_tokens
from dev.harness.hub import FILES, MODEL, ask
from tests.cli.conftest import Hotslot, hotslot
from tests.hubserver.process import FAULTY, serve

__all__ = ["hotslot"]  # a fixture

# The stock download, as its users call it. It prints the listing and the paths of the files.
STOCK_DOWNLOAD = """
import json, sys
from modelscope import snapshot_download
from modelscope.hub.api import HubApi
place = snapshot_download("any/shapes", revision="v1.0.0", cache_dir=sys.argv[1])
branches, tags = HubApi().get_model_branches_and_tags("any/shapes")
try:
    snapshot_download("any/shapes", revision="v9.9.9", cache_dir=sys.argv[1])
except Exception as error:
    missing = str(error)
print(json.dumps({"place": place, "branches": branches, "tags": tags, "missing": missing}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder hub with v1.0.0."""
    for name, content in FILES.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    publish(tmp_path / "made", tmp_path / "hub", MODEL, "v1.0.0")
    return tmp_path / "hub"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_stock_download_works(folder: Path, tmp_path: Path) -> None:
    """ModelScope's own client lists and downloads from it, token included, and nothing outside is asked."""
    write_tokens(tmp_path / "tokens", added=make_entry("reader", "open-sesame", ""))
    with serve(folder, "--tokens-file", str(tmp_path / "tokens")) as hub:
        done = subprocess.run(
            [sys.executable, "-c", STOCK_DOWNLOAD, str(tmp_path / "cache")],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "MODELSCOPE_ENDPOINT": hub.url,
                "MODELSCOPE_API_TOKEN": "open-sesame",
                # Whatever is asked elsewhere ends here.
                "https_proxy": "http://127.0.0.1:9",
                "no_proxy": "127.0.0.1",
            },
        )
        _, log, _ = hub.end()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    place = Path(told["place"])
    assert {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()} == {
        **FILES
    }
    assert (told["tags"], told["branches"]) == (["v1.0.0"], [])
    assert "v9.9.9" in told["missing"]
    files = [line for line in log if "FilePath=" in line.get("target", "")]
    assert {(line["status"], line["has_token"]) for line in files} == {(200, True)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hub_ends_in_order_when_it_is_asked(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C stops it in good order; all earlier requests are in the log."""
    with serve(folder) as hub:
        assert ask(hub.url, f"/api/v1/models/any/{MODEL}/revisions").status == 200
        code, log, said = hub.end(number)
    assert code == 0
    assert [line["event"] for line in log] == ["request_answered", "hub_ended"]
    assert f"the hub serves at {hub.url}" in said
    assert "Traceback" not in said


def test_faults_can_be_armed_from_the_start(folder: Path) -> None:
    """For staging: what a client does about it is seen at once."""
    options = ("--fault", "any status=503 retry-after=5", "--allow-faults")
    with serve(folder, *options, program=FAULTY) as hub:
        got = ask(hub.url, f"/api/v1/models/any/{MODEL}/revisions")
        assert (got.status, got.headers["retry-after"]) == (503, "5")
        assert ask(hub.url, "/_faults").body == b"any status=503 retry-after=5  # met 1\n"


def test_the_demo_s_hub_runs_beside_its_stack(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It listens at the updater's endpoint while the stack runs; the configured model exists without a revision."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CommandFailed, match="cannot listen"), serve_hub_while(tmp_path, endpoint, ()):
            pass
    for _ in range(2):  # the port is free again
        with serve_hub_while(tmp_path / "hub", endpoint, [f"any/{MODEL}"]):
            got = ask(endpoint, f"/api/v1/models/any/{MODEL}/revisions")
        assert got.row["Data"]["RevisionMap"] == {"Branches": [], "Tags": []}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nowhere"], "hotslot hub add"),
        ([".", "--tokens-file", "nowhere"], "cannot be read"),
        ([".", "--tls-cert", "empty"], "together"),
        ([".", "--tls-client-ca", "empty"], "needs them"),
        ([".", "--tls-cert", "empty", "--tls-key", "empty"], "no certificate in PEM"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    hotslot: Hotslot, options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    ended = hotslot("hub", "serve", *options)
    assert (ended.code, says in ended.err.replace("\n", " ")) == (2, True), ended.err
