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


def status_json(stage: "pb.UpdateStage.ValueType", committed: str, reason: str = "", quarantined: str = "") -> str:
    """What `hotslot updates status --json` prints."""
    current = pb.UpdateSummary(revision="v2", source_digest=DIGEST, stage=stage, reason=reason, message="look at it")
    entries = [pb.QuarantineEntry(revision=quarantined)] if quarantined else []
    model = pb.ModelUpdates(
        model="shapes", stage=stage, current=current, committed_revision=committed, quarantine=entries
    )
    return json.dumps(plain(pb.GetStatusResponse(models=[model])))


def run_step(folder: Path, program: str, *words: str, **places: str) -> "subprocess.CompletedProcess[str]":
    """Run a step of the script with a scripted `hotslot`, which writes its command lines to the file `calls`."""
    (folder / "hotslot").write_text(program, encoding="utf-8")
    (folder / "hotslot").chmod(0o755)
    environment = {**os.environ, "HOTSLOT": str(folder / "hotslot"), "CALLS": str(folder / "calls"), "PAUSE": "0"}
    return subprocess.run(
        [CI / "model.sh", *words],
        env={**environment, "FOLDER": str(folder), **places},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def approve(folder: Path, status: str) -> "subprocess.CompletedProcess[str]":
    """Run the step `approve` of v2 on an updater with this status, which commits what is approved."""
    (folder / "status").write_text(status, encoding="utf-8")
    (folder / "after").write_text(status_json(pb.UPDATE_STAGE_IDLE, "v2"), encoding="utf-8")
    places = {"STATUS": str(folder / "status"), "AFTER": str(folder / "after"), "TRIES": "2"}
    return run_step(folder, SCRIPTED, "approve", "shapes", "v2", **places)


def test_an_update_that_waits_is_approved_by_its_content(tmp_path: Path) -> None:
    """And the script ends once the revision is committed."""
    done = approve(tmp_path, status_json(pb.UPDATE_STAGE_HELD, "v1", "APPROVAL"))

    assert f"updates approve {DIGEST} --model shapes" in (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "shapes serves v2")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (status_json(pb.UPDATE_STAGE_HELD, "v1", "CHANGED_ANSWERS"), "v2 is held: CHANGED_ANSWERS: look at it"),
        (status_json(pb.UPDATE_STAGE_IDLE, "v1", quarantined="v2"), "v2 is in quarantine"),
        ("", "does not answer about shapes"),
    ],
    ids=["held for its answers", "in quarantine", "no updater"],
)
def test_what_a_person_must_look_at_is_not_approved(tmp_path: Path, status: str, sentence: str) -> None:
    """A job that approves is not a judgement of what a trial found."""
    done = approve(tmp_path, status)

    assert "approve" not in (tmp_path / "calls").read_text(encoding="utf-8")
    assert (done.returncode, sentence in done.stderr) == (1, True)


# It serves until a signal ends it. The shell of a cancelled job gets
# its signal while the golden set is asked.
SERVING = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
serve) printf '%s' $$ >"$FOLDER/pid"; exec sleep 60 ;;
healthcheck*) test -s "$FOLDER/pid" ;;
status*) sed -n 's/.*--revision \\(.*\\)/{"revision": "\\1"}/p' "$CALLS" | sed "s/candidate/${ANSWERS:-candidate}/" ;;
golden*) if [ -n "$CANCEL" ]; then kill -TERM $PPID; fi ;;
esac
"""


def check(folder: Path, **places: str) -> "subprocess.CompletedProcess[str]":
    """Run the step `check`."""
    (folder / "configuration.json").write_text('{"task": "visual-entailment"}', encoding="utf-8")
    return run_step(folder, SERVING, "check", str(folder), "shapes", "golden", **{"CANCEL": "", **places})


def test_a_check_serves_the_model_and_leaves_no_server(tmp_path: Path) -> None:
    """Neither after its end nor when the job is cancelled."""
    for cancel, code in (("", 0), ("1", 143)):
        done = check(tmp_path, CANCEL=cancel)

        assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
        assert done.returncode == code, done.stderr
        (tmp_path / "pid").unlink()


def test_another_server_on_the_port_is_not_checked(tmp_path: Path) -> None:
    """A job beside it may have the port; its model would pass in the place of ours."""
    done = check(tmp_path, ANSWERS="foreign")

    assert "golden check" not in (tmp_path / "calls").read_text(encoding="utf-8")
    assert (done.returncode, "another server answers" in done.stderr) == (1, True)


def test_a_hub_that_is_not_here_is_not_made(tmp_path: Path) -> None:
    """On a machine that does not mount it, nobody would read it."""
    done = run_step(tmp_path, SERVING, "publish", str(tmp_path), "shapes", "v2", str(tmp_path / "hub"))

    assert not (tmp_path / "calls").exists()
    assert (done.returncode, "does not exist here" in done.stderr) == (1, True)


def test_publishing_and_approving_run_on_the_servers_host() -> None:
    """Each server shares the hub's folder only there; and Jenkins asks for approval only of a tag."""
    gitlab, github, jenkins = ((CI / name).read_text(encoding="utf-8") for name in FILES)

    assert gitlab.count("tags: [hotslot-host]") == 2
    assert github.count("runs-on: [self-hosted, hotslot-host]") == 2
    assert jenkins.count("agent { label 'hotslot-host' }") == 2
    assert jenkins.index("beforeInput true") < jenkins.index("input {")
