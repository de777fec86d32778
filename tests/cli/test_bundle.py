"""`hotslot bundle …`: import by hand is convert and commit, once; the rest only looks."""

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
    commit,
    hash_file,
    read_committed,
    write_bundle,
)
from common.sealing import ConvertLimits, find_source
from tests.cli.conftest import Hotslot

FOREIGN = Committed("other", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "v9", Origin.UPDATE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A published folder; its weights are no weights."""
    folder = tmp_path / "v1.0.0"
    folder.mkdir()
    configuration = {"task": "visual-entailment", "model": {"type": "ofa"}}
    contents = {"configuration.json": json.dumps(configuration), "config.json": "{}", "vocab.json": "{}"}
    for name, content in {**contents, "merges.txt": "", "model.safetensors": "w"}.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The folder of bundles, where nothing is."""
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
    """Stand in for the converter: the digests are real, the one file is not."""
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
    """The source is sealed already; nothing is committed."""
    return seal(source, state, "v1.0.0", ConvertLimits(), "float32")


def test_an_import_commits_and_keeps_other_models(source: Path, state: Path) -> None:
    """The pointer gets a row with origin import; the other row stays as it was."""
    commit(state, FOREIGN)

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
    """The second time it says so, and does not touch the pointer."""
    words = ("bundle", "import", str(source), "--model", "shapes", "--state-dir", str(state))
    first = hotslot(*words)
    pointer = state / "committed.json"
    before = pointer.stat()
    second = hotslot(*words)

    assert (first.code, second.code) == (0, 0)
    assert "shapes is now v1.0.0" in first.out
    assert "was sealed already" in first.out
    assert "nothing to do" in second.out
    assert (before.st_ino, before.st_mtime_ns) == (pointer.stat().st_ino, pointer.stat().st_mtime_ns)


def test_an_import_says_what_it_replaced(hotslot: Hotslot, source: Path, state: Path, sealed: Bundle) -> None:
    """The one before is named, so that it can be brought back."""
    commit(state, FOREIGN)
    ended = hotslot("bundle", "import", str(source), "--model", "other", "--state-dir", str(state))
    assert "(before: v9 111111111111)" in ended.out


def test_the_model_is_guessed_where_only_one_fits(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle, tmp_path: Path
) -> None:
    """The settings' only model of the source's task; two are a question to the caller."""
    settings = tmp_path / "hotslot.toml"
    settings.write_text(f'state_dir = "{state}"\n[[models]]\nname = "pictures"\n')
    assert "pictures is now v1.0.0" in hotslot("bundle", "import", str(source)).out

    settings.write_text(settings.read_text() + '[[models]]\nname = "more"\n')
    ended = hotslot("bundle", "import", str(source))
    assert (ended.code, "--model" in ended.err and "pictures, more" in ended.err) == (2, True)


def test_a_foreign_folder_is_refused_with_its_reason(hotslot: Hotslot, source: Path, state: Path) -> None:
    """The converter's reason and sentence, no traceback, nothing committed."""
    (source / "configuration.json").write_text('{"task": "poetry"}')
    ended = hotslot("bundle", "import", str(source), "--model", "m", "--state-dir", str(state))
    assert (ended.code, "(ENGINE_UNKNOWN)" in ended.err) == (1, True)
    assert read_committed(state) == {}


def test_bundles_are_listed_with_the_committed_mark(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle
) -> None:
    """A line a bundle; a broken one is shown as broken."""
    import_bundle(source, state, "shapes", "v1", "float32", convert=seal)
    broken = seal(source, state, "v1", ConvertLimits(), "bfloat16")
    (bundle_folder(state, broken.bundle_digest) / "model.safetensors").unlink()

    ended = hotslot("bundle", "list", "--state-dir", str(state))

    assert ended.code == 0
    assert "shapes (import)" in ended.out
    assert "broken: " in ended.out
    assert len(bundle_folders(state)) == 2


def test_a_bundle_is_shown_by_its_first_digits(hotslot: Hotslot, state: Path, sealed: Bundle) -> None:
    """All that its manifest says, by a digest that is long enough to mean one."""
    digits = sealed.bundle_digest[7:15]
    ended = hotslot("bundle", "show", digits, "--state-dir", str(state))
    assert ended.code == 0
    assert sealed.bundle_digest in ended.out
    assert "model.safetensors  7 B" in ended.out


@pytest.mark.parametrize(("digits", "code"), [("00", 2), ("00000000", 1)])
def test_an_unknown_digest_is_one_sentence(hotslot: Hotslot, state: Path, digits: str, code: int) -> None:
    """It says how to find the right one."""
    ended = hotslot("bundle", "show", digits, "--state-dir", str(state))
    assert (code, True) == (ended.code, "`hotslot bundle list`" in ended.err)


def test_an_empty_state_says_how_to_begin(hotslot: Hotslot, state: Path) -> None:
    """Listing nothing is no failure."""
    ended = hotslot("bundle", "list", "--state-dir", str(state))
    assert (ended.code, "hotslot bundle import" in ended.out) == (0, True)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_text("{"), lambda path: path.write_text('{"schema_version": 99}')]
)
def test_a_broken_pointer_is_one_sentence(hotslot: Hotslot, state: Path, spoil: Callable[[Path], object]) -> None:
    """No traceback for a file that somebody else has spoilt."""
    spoil(state / "committed.json")
    ended = hotslot("bundle", "list", "--state-dir", str(state))
    assert (ended.code, ended.err.startswith("error: committed.json")) == (1, True)


def test_what_the_updater_keeps_is_not_replaced_by_hand(
    hotslot: Hotslot, source: Path, state: Path, sealed: Bundle, tmp_path: Path
) -> None:
    """Its journal would put it back; the sentence names the way in. Without the updater it goes."""
    committed = Committed("shapes", FOREIGN.bundle_digest, FOREIGN.source_digest, "v9", Origin.UPDATE)
    words = ("bundle", "import", str(source), "--model", "shapes")
    settings = f'state_dir = "{state}"\n[[models]]\nname = "shapes"\n'
    kept = f'{settings}[updater.models.shapes]\nhub_folder = "hub"\n'
    (tmp_path / "hotslot.toml").write_text(kept)
    commit(state, committed)
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
    """A journal that knows nothing of the model yet takes over what is there."""
    (state / "journal.db").touch()
    ended = hotslot("bundle", "import", str(source), "--model", "shapes", "--state-dir", str(state))
    assert (ended.code, "shapes is now v1.0.0" in ended.out) == (0, True)
