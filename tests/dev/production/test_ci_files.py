"""deploy/ci: what the files call exists, and an update that waits is approved by its content."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli.output import plain
from dev.production.pipeline import CI, FILES, TAGS, commands_of
from hotslot.updates.v1 import updates_pb2 as pb

DIGEST = "sha256:" + "67717cf6" * 8
SCRIPTED = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
*approve*) cp "$AFTER" "$STATUS" ;;
*) cat "$STATUS" ;;
esac
"""


@pytest.mark.parametrize("name", FILES)
def test_each_file_takes_every_step_with_the_tag_of_its_server(name: str) -> None:
    """In this order."""
    commands = commands_of(name)

    assert list(commands) == ["check", "publish", "approve"]
    assert f'"${TAGS[name]}"' in commands["approve"]


def status_json(stage: "pb.UpdateStage.ValueType", committed: str) -> str:
    """What `hotslot updates status --json` prints."""
    current = pb.UpdateSummary(revision="v2", source_digest=DIGEST, stage=stage)
    model = pb.ModelUpdates(model="shapes", stage=stage, current=current, committed_revision=committed)
    return json.dumps(plain(pb.GetStatusResponse(models=[model])))


def test_an_update_that_waits_is_approved_by_its_content(tmp_path: Path) -> None:
    """And the script ends once the revision is committed."""
    program, calls = tmp_path / "hotslot", tmp_path / "calls"
    program.write_text(SCRIPTED, encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "status").write_text(status_json(pb.UPDATE_STAGE_HELD, "v1"), encoding="utf-8")
    (tmp_path / "after").write_text(status_json(pb.UPDATE_STAGE_IDLE, "v2"), encoding="utf-8")
    places = {"HOTSLOT": program, "CALLS": calls, "STATUS": tmp_path / "status", "AFTER": tmp_path / "after"}
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}, "PAUSE": "0"}

    done = subprocess.run(
        [CI / "model.sh", "approve", "shapes", "v2"], env=environment, capture_output=True, text=True, check=True
    )

    assert f"updates approve {DIGEST} --model shapes" in calls.read_text(encoding="utf-8").splitlines()
    assert done.stdout.splitlines()[-1] == "shapes serves v2"
