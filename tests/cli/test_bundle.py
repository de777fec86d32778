"""`hotslot bundle …`: importing converts and commits a folder; listing and showing change nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.bundles import bundle_folders, import_bundle, is_loadable
from common.bundle import (
    Bundle,
    Committed,
    Origin,
    Provenance,
    bundle_folder,
    hash_file,
    read_committed,
    write_bundle,
)
from common.sealing import ConvertLimits
from common.source import find_source
from dev.harness.pointer import commit_row
from tests.cli.conftest import Hotslot

FOREIGN = Committed("other", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "v9", Origin.UPDATE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A published folder with placeholder files."""
    folder = tmp_path / "v1.0.0"
    folder.mkdir()
    configuration = {"task": "visual-entailment", "model": {"type": "ofa"}}
    contents = {"configuration.json": json.dumps(configuration), "config.json": "{}", "vocab.json": "{}"}
    for name, content in {**contents, "merges.txt": "", "model.safetensors": "w"}.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An empty state folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def seal(
    source: Path,
    state: Path,
    revision: str,
    limits: ConvertLimits,
    precision: str,
    *,
    digest: str = "",
    provenance: Provenance | None = None,
) -> Bundle:
    """Replaces the converter: real digests, and a placeholder as the only file."""
    seen = find_source(source)
    found = digest or seen.digest()
    sealed = seen.bundle_digest(found, precision)
    folder = bundle_folder(state, sealed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    files = (hash_file(folder / "model.safetensors"),)
    plain = (sealed, found, revision, "ofa", "visual-entailment", precision, "ofa-1", files)
    bundle = Bundle(*plain, provenance=provenance)
    write_bundle(folder, bundle)
    return bundle


@pytest.fixture
def sealed(source: Path, state: Path) -> Bundle:
    """The bundle of `source`, sealed but not committed."""
    return seal(source, state, "v1.0.0", ConvertLimits(), "float32")


def test_an_import_commits_and_keeps_other_models(source: Path, state: Path) -> None:
    """The pointer gets a row with origin import; the other row is unchanged."""
    commit_row(state, FOREIGN)

    done = import_bundle(source, state, "shapes", "v1", "float32", convert=seal)

    rows = read_committed(state)
    assert (done.is_new, done.was_sealed, done.replaced) == (True, False, None)
    assert rows["other"] == FOREIGN
    assert (done.bundle.bundle_digest, "v1", Origin.IMPORT) == (
        rows["shapes"].bundle_digest,
        rows["shapes"].revision,
        rows["shapes"].origin,
    )
    assert is_loadable(state, "shapes")
    assert not is_loadable(state, "other")


def test_the_same_import_again_changes_nothing(hotslot: Hotslot, source: Path, state: Path, sealed: Bundle) -> None:
    """The second import says so and does not touch the pointer."""
    words = ("bundle", "import", str(source), "--model", "shapes", "--state-dir", str(state))
    first = hotslot(*words)
    pointer = state / "committed.json"
    before = pointer.stat()
    second = hotslot(*words)

    assert (first.code, second.code) == (0, 0)
    assert "shapes is now v1.0.0" in first.out
    assert "converted earlier" in first.out
    assert "nothing to do" in second.out
    assert (before.st_ino, before.st_mtime_ns) == (pointer.stat().st_ino, pointer.stat().st_mtime_ns)


def test_an_import_says_what_it_replaced(hotslot: Hotslot, source: Path, state: Path, sealed: Bundle) -> None:
    """The output names the previous revision, so that it can be restored."""
    commit_row(state, FOREIGN)
    ended = hotslot("bundle", "import", str(source), "--model", "other", "--state-dir", str(state))
    assert "(before: v9 111111111111)" in ended.out


def test_the_model_may_be_left_out_if_only_one_fits(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle, tmp_path: Path
) -> None:
    """It is the only model of the source's task; with two, --model is required."""
    settings = tmp_path / "hotslot.toml"
    settings.write_text(f'state_dir = "{state}"\n[[models]]\nname = "pictures"\n')
    assert "pictures is now v1.0.0" in hotslot("bundle", "import", str(source)).out

    settings.write_text(settings.read_text() + '[[models]]\nname = "more"\n')
    ended = hotslot("bundle", "import", str(source))
    assert (ended.code, "--model" in ended.err and "pictures, more" in ended.err) == (2, True)


def test_an_unsupported_folder_is_refused_with_a_reason(hotslot: Hotslot, source: Path, state: Path) -> None:
    """The error has the converter's reason; nothing is committed."""
    (source / "configuration.json").write_text('{"task": "poetry"}')
    ended = hotslot("bundle", "import", str(source), "--model", "m", "--state-dir", str(state))
    assert (ended.code, "(ENGINE_UNKNOWN)" in ended.err) == (1, True)
    assert read_committed(state) == {}


def test_bundles_are_listed_with_the_models_that_they_serve(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle
) -> None:
    """Each bundle has a line; a broken one is marked."""
    import_bundle(source, state, "shapes", "v1", "float32", convert=seal)
    broken = seal(source, state, "v1", ConvertLimits(), "bfloat16")
    (bundle_folder(state, broken.bundle_digest) / "model.safetensors").unlink()

    ended = hotslot("bundle", "list", "--state-dir", str(state))

    assert ended.code == 0
    assert "shapes (import)" in ended.out
    assert "broken: " in ended.out
    assert len(bundle_folders(state)) == 2


def test_a_bundle_is_shown_by_its_first_digits(hotslot: Hotslot, state: Path, sealed: Bundle) -> None:
    """The whole manifest is shown."""
    digits = sealed.bundle_digest[7:15]
    ended = hotslot("bundle", "show", digits, "--state-dir", str(state))
    assert ended.code == 0
    assert sealed.bundle_digest in ended.out
    assert "model.safetensors  7 B" in ended.out


@pytest.mark.parametrize(("digits", "code"), [("00", 2), ("00000000", 1)])
def test_an_unknown_digest_is_reported_in_one_sentence(hotslot: Hotslot, state: Path, digits: str, code: int) -> None:
    """The message names the command that lists the digests."""
    ended = hotslot("bundle", "show", digits, "--state-dir", str(state))
    assert (code, True) == (ended.code, "`hotslot bundle list`" in ended.err)


def test_listing_an_empty_state_folder_says_how_to_import(hotslot: Hotslot, state: Path) -> None:
    """The exit code is 0."""
    ended = hotslot("bundle", "list", "--state-dir", str(state))
    assert (ended.code, "hotslot bundle import" in ended.out) == (0, True)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_text("{"), lambda path: path.write_text('{"schema_version": 99}')]
)
def test_a_broken_pointer_is_reported_in_one_sentence(
    hotslot: Hotslot, state: Path, spoil: Callable[[Path], object]
) -> None:
    """There is no traceback."""
    spoil(state / "committed.json")
    ended = hotslot("bundle", "list", "--state-dir", str(state))
    assert (ended.code, ended.err.startswith("error: committed.json")) == (1, True)
    words = " ".join(ended.err.split())
    assert ("hotslot bundle import" in words) != ("start the newer hotslot again" in words)


def test_a_model_that_the_updater_manages_is_not_imported(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle, tmp_path: Path
) -> None:
    """The updater would restore its own revision; the message names the alternative. Without updater it is imported."""
    committed = Committed("shapes", FOREIGN.bundle_digest, FOREIGN.source_digest, "v9", Origin.UPDATE)
    words = ("bundle", "import", str(source), "--model", "shapes")
    settings = f'state_dir = "{state}"\n[[models]]\nname = "shapes"\n'
    kept = f'{settings}[updater.models.shapes]\nhub_folder = "hub"\n'
    (tmp_path / "hotslot.toml").write_text(kept)
    commit_row(state, committed)
    (state / "journal.db").touch()

    refused = hotslot(*words)
    assert refused.code != 0
    assert f"hotslot hub add {source} v1.0.0" in " ".join(refused.err.split())
    assert committed == read_committed(state)["shapes"]

    (tmp_path / "hotslot.toml").write_text(settings)
    assert hotslot(*words).code == 0
    (tmp_path / "hotslot.toml").write_text(kept)
    again = hotslot(*words)
    assert (again.code, "nothing to do" in again.out) == (0, True)


def test_a_first_import_beside_an_updater_is_adopted(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle
) -> None:
    """An updater whose journal does not have the model yet adopts the imported bundle."""
    (state / "journal.db").touch()
    ended = hotslot("bundle", "import", str(source), "--model", "shapes", "--state-dir", str(state))
    assert (ended.code, "shapes is now v1.0.0" in ended.out) == (0, True)
