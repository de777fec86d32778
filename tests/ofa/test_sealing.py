"""From a published folder to a sealed bundle, with a real conversion process."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bundle import bundle_folder, read_bundle
from common.exit_codes import ExitCode
from common.sealing import ConvertLimits, run_convert, seal
from common.source import ConversionRefused, find_source
from dev.parity.items import questions
from dev.parity.ours import ask, load_source
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.engines.base import LoadOptions
from inference.runner.engines.ofa.load import load_ofa
from tests.ofa.conftest import Publish

LIMITS = ConvertLimits()
MIB = 1 << 20
# The child as it is, around a conversion that never ends: how long a real one computes is the machine's affair.
ENDLESS = """
import sys
from inference.runner import convert

def endless(_options):
    while True:
        pass

convert._convert = endless
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The folder that hotslot keeps its own things in."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def staged(source: Path, state: Path) -> Path:
    """A converted folder that is not sealed yet."""
    folder = state / "staged"
    folder.mkdir()
    convert_ofa(source, folder, "v1", "float32")
    return folder


def test_a_published_folder_becomes_a_sealed_bundle(sources: Callable[[str], Path], state: Path) -> None:
    """The child converts, the bundle has its digest's name, and the engine opens it and answers as before."""
    bundle = run_convert(sources("plain"), state, "v1.0.0", LIMITS)
    folder = bundle_folder(state, bundle.bundle_digest)

    assert read_bundle(folder) == bundle
    assert (bundle.revision, bundle.engine, bundle.precision) == ("v1.0.0", "ofa", "float32")
    assert {file.name for file in bundle.files} == {"engine.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert not any((state / "staging").iterdir())
    engine = load_ofa(folder, bundle, LoadOptions("cpu", "float32", 1), lambda _phase, _share: None)
    some = list(questions())[:3]
    assert ask(engine, some) == ask(load_source(sources("plain")), some)


def test_a_sealed_bundle_is_not_made_again(
    sources: Callable[[str], Path], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source and precision find their bundle at once, without a child."""
    first = seal(staged(sources("plain"), state), state)
    monkeypatch.setattr(subprocess, "Popen", None)

    assert first == run_convert(sources("plain"), state, "another name", LIMITS)


def test_sealing_twice_keeps_the_first(sources: Callable[[str], Path], state: Path) -> None:
    """The second copy is deleted; the sealed files are never changed."""
    first = seal(staged(sources("plain"), state), state)
    inode = (bundle_folder(state, first.bundle_digest) / "model.safetensors").stat().st_ino

    second = seal(staged(sources("plain"), state), state)

    assert first == second
    assert inode == (bundle_folder(state, first.bundle_digest) / "model.safetensors").stat().st_ino
    assert not (state / "staged").exists()


def test_a_broken_bundle_is_replaced(sources: Callable[[str], Path], state: Path) -> None:
    """A sealed folder that lost a file is made again."""
    bundle = seal(staged(sources("plain"), state), state)
    (bundle_folder(state, bundle.bundle_digest) / "engine.json").unlink()

    assert bundle == seal(staged(sources("plain"), state), state)
    assert bundle == read_bundle(bundle_folder(state, bundle.bundle_digest))


def test_sealed_files_are_read_only(sources: Callable[[str], Path], state: Path) -> None:
    """Weights stay mapped while a model serves, so they must not be written to."""
    bundle = seal(staged(sources("plain"), state), state)

    modes = {stat.S_IMODE(file.stat().st_mode) for file in bundle_folder(state, bundle.bundle_digest).iterdir()}

    assert modes == {0o444}


def test_digests_follow_the_declared_files_alone(publish: Publish) -> None:
    """A README changes nothing, the configuration changes the source digest, the precision only the bundle digest."""
    one, edited, other = publish(), publish(), publish(model={"max_src_length": 39})
    (edited / "README.md").write_text("new words")

    first = find_source(one)
    assert first.digest() == find_source(edited).digest()
    assert first.digest() != find_source(other).digest()
    assert first.bundle_digest(first.digest(), "float32") != first.bundle_digest(first.digest(), "bfloat16")


def test_bfloat16_halves_the_weights(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """Stored in bfloat16 a bundle is about half as large; the tables of positions stay whole."""
    sizes = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        folder.mkdir()
        sizes.append(convert_ofa(sources("plain"), folder, "v1", precision).weights_bytes)

    assert 0.5 < sizes[1] / sizes[0] < 0.6


def test_a_bundle_notes_that_beam_search_is_replaced(publish: Publish, tmp_path: Path) -> None:
    """A revision with gen_type 'generation' gets a note that all answers are scored; one with 'traverse' does not."""
    notes = []
    for way in ("generation", "traverse"):
        into = tmp_path / way
        into.mkdir()
        convert_ofa(publish(model={"gen_type": way}), into, "v1", "float32")
        notes.append(read_bundle(into).notes)

    assert "gen_type is 'generation'" in notes[0][0]
    assert notes[1] == ()


def test_bundles_without_notes_are_read(sources: Callable[[str], Path], state: Path) -> None:
    """A bundle that was sealed before there were notes has none."""
    folder = staged(sources("plain"), state)
    row = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del row["notes"]
    (folder / "bundle.json").write_text(json.dumps(row), encoding="utf-8")

    assert read_bundle(folder).notes == ()


def test_a_conversion_reports_its_progress(sources: Callable[[str], Path], state: Path) -> None:
    """The percentage grows to 100."""
    heard: list[int] = []

    run_convert(sources("plain"), state, "v1", LIMITS, progress=heard.append)

    assert sorted(heard) == heard
    assert heard[-1] == 100


@pytest.mark.reason("SOURCE_CHANGED")
@pytest.mark.fault("P7")
def test_only_a_verified_digest_is_sealed(sources: Callable[[str], Path], state: Path) -> None:
    """The child hashes the files it converts; another digest than the verified one is refused."""
    with pytest.raises(ConversionRefused) as caught:
        run_convert(sources("plain"), state, "v1", LIMITS, digest="sha256:" + "0" * 64)

    assert caught.value.reason == "SOURCE_CHANGED"
    assert not (state / "bundles").exists()


def test_a_sealed_digest_is_found_without_reading_the_source(publish: Publish, state: Path) -> None:
    """Another conversion of it returns at once, even if the source has changed since."""
    folder = publish()
    bundle = run_convert(folder, state, "v1", LIMITS)
    (folder / "pytorch_model.bin").unlink()  # it may be another folder's, too
    (folder / "pytorch_model.bin").write_bytes(b"")

    assert bundle == run_convert(folder, state, "v2", LIMITS, digest=bundle.source_digest)


def test_a_refusal_of_the_child_reaches_the_caller(publish: Publish, state: Path) -> None:
    """With its reason and message, and no files are left."""
    with pytest.raises(ConversionRefused, match=r'model\.gen_type is "sample"') as caught:
        run_convert(publish(model={"gen_type": "sample"}), state, "v1", LIMITS)

    assert caught.value.reason == "CONFIG_UNSUPPORTED"
    assert not any((state / "staging").iterdir())
    assert not (state / "bundles").exists()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ConvertLimits(timeout_seconds=0.05), "TIME_LIMIT"),
        (ConvertLimits(memory_bytes=64 * MIB), "MEMORY_LIMIT"),
        (ConvertLimits(max_file_bytes=MIB), "IO_FAILED"),
    ],
)
@pytest.mark.reason("MEMORY_LIMIT")
@pytest.mark.fault("K10")
def test_limits_hold(limits: ConvertLimits, reason: str, sources: Callable[[str], Path], state: Path) -> None:
    """Time, memory and output are limited, and the refusal names the limit."""
    with pytest.raises(ConversionRefused) as caught:
        run_convert(sources("plain"), state, "v1", limits)

    assert reason == caught.value.reason
    assert not any((state / "staging").iterdir())


@pytest.mark.reason("CPU_LIMIT")
@pytest.mark.fault("K10")
def test_cpu_time_is_limited(tmp_path: Path) -> None:
    """A conversion that computes without end is stopped, and says that it was CPU time that ran out."""
    program = [sys.executable, "-P", "-c", ENDLESS, "--source", str(tmp_path), "--into", str(tmp_path)]
    program += ["--engine", "ofa", "--revision", "v1", "--max-cpu-seconds", "1"]

    ended = subprocess.run(program, capture_output=True, timeout=60.0, check=False)

    assert ended.returncode == ExitCode.CONVERSION_REFUSED
    assert json.loads(ended.stderr)["reason"] == "CPU_LIMIT"


def test_missing_files_are_named(publish: Publish) -> None:
    """In one sentence."""
    sentence = r"ans2label\.json \(which configuration\.json names\), .*pytorch_model\.bin.*, vocab\.json or vocab\.txt"
    with pytest.raises(ConversionRefused, match=sentence) as caught:
        find_source(publish(without=("ans2label.json", "vocab.json", "pytorch_model.bin")))

    assert caught.value.reason == "FILES_MISSING"


def test_names_cannot_leave_the_folder(publish: Publish) -> None:
    """A configuration that names a file outside the folder is refused."""
    with pytest.raises(ConversionRefused):
        find_source(publish(model={"answer2label": "../../../../etc/passwd"}))


def test_a_folder_without_an_engine_is_refused(publish: Publish) -> None:
    """A task that this build does not serve is named."""
    with pytest.raises(ConversionRefused, match=r"'image-captioning' with model\.type 'ofa' has no engine"):
        find_source(publish(top={"task": "image-captioning"}))


@pytest.mark.parametrize(
    ("module", "absent"),
    [("common.sealing", {"torch"}), ("inference.runner.convert", {"torch", "pydantic"})],
)
def test_starting_a_conversion_imports_no_torch(module: str, absent: set[str]) -> None:
    """Neither in the parent, nor in the child before its limits apply."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert not absent & set(done.stdout.split())
