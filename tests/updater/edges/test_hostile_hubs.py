"""Hostile listings and files, through every adapter of the hub's port: refused by a numbered check, or harmless."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from common.bundle import HubLocation
from common.clock import SystemClock
from common.sealing import ConvertLimits
from common.source import describe_odd_names
from dev.harness.revisions import MODEL, convert_scripted, weights_of
from dev.harness.scripted_updater import digest_of_scripted
from tests.updater.edges.shelf import ADAPTERS, Row, Shelf
from updater.core.checks import CHECKS
from updater.core.effects import EffectFailure, FailureKind, Result, Sealed, Staged, StageRevision, VerifyAndSeal
from updater.core.facts import Release
from updater.core.ports import Control, Golden, Hub
from updater.perform import Ports, perform
from updater.store.bundles import BundleStore, ChildConverter, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits

ID = "20260102-030405-abcdef"
WEIGHTS = "model.safetensors"
ZEROS = "0" * 64


@dataclass
class Changing:
    """A hub on which something happens as soon as the weights are being read."""

    hub: Hub
    event: Callable[[], object]

    @property
    def place(self) -> HubLocation:
        return self.hub.place

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        return self.hub.revisions(deadline_seconds)

    def release(self, revision: str, deadline_seconds: float) -> Release:
        return self.hub.release(revision, deadline_seconds)

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        yield from self.hub.read(revision, name, offset, deadline_seconds)
        if name == WEIGHTS:
            self.event()


@dataclass
class HostileHub:
    """An adapter over a shelf, and a real store."""

    folder: Path
    shelf: Shelf
    hub: Hub

    def take(self, revision: str = "v1.0.0", hub: Hub | None = None) -> Result:
        """What the updater's two steps come to: fetched, then verified, converted and sealed."""
        clock, state = SystemClock(), self.folder / "state"
        shared = StoreOptions(state, StagingLimits(reserve_bytes=0))
        ports = Ports(
            hub=hub or self.hub,
            control=cast("Control", None),  # neither step has to do with a server
            golden=cast("Golden", None),
            store=BundleStore(shared, MODEL, clock, lambda: None, References, digest_of_scripted),
            converter=ChildConverter(state, ConvertLimits(), lambda: None, convert_scripted),
            clock=clock,
        )
        staged = perform(StageRevision(ID, revision, "", is_fresh=False, max_bytes=1 << 30), ports)
        if not isinstance(staged, Staged):
            return staged
        return perform(VerifyAndSeal(ID, revision, staged.source_digest, "float32", "", is_kept_source=False), ports)

    def outside(self) -> dict[str, bytes]:
        """All that lies around the state folder."""
        state = self.folder / "state"
        paths = [path for path in self.folder.rglob("*") if path.is_file() and state not in path.parents]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}


@pytest.fixture(params=sorted(ADAPTERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostileHub]:
    """Each adapter in turn, over one good revision."""
    (tmp_path / "state").mkdir()
    shelf = Shelf(tmp_path / "hub")
    shelf.publish("v1.0.0")
    with ExitStack() as stack:
        yield HostileHub(tmp_path, shelf, ADAPTERS[request.param](shelf, stack))


def refused(result: Result) -> EffectFailure:
    """It must be, by a number of the list."""
    assert isinstance(result, EffectFailure), result
    check = next(check for check in CHECKS if result.reason in check.reasons)
    assert result.message.startswith(f"check {check.title}: ")
    return result


def test_a_good_revision_is_sealed(bench: HostileHub) -> None:
    """So that each refusal below has only the tested cause."""
    assert isinstance(bench.take(), Sealed)


def fault(number: str, reason: str, *values: Any) -> Any:  # noqa: ANN401  of a parameter
    """A row of a table, with its marks."""
    return pytest.param(reason, *values, marks=[pytest.mark.fault(number), pytest.mark.reason(reason)])


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        pytest.param("LISTING_UNSAFE", "../evil.json", marks=pytest.mark.fault("P1")),
        pytest.param("LISTING_UNSAFE", "a/../../evil.json", marks=pytest.mark.fault("P1")),
        pytest.param("LISTING_UNSAFE", "..", marks=pytest.mark.fault("P1")),
        pytest.param("LISTING_UNSAFE", "/etc/evil.json", marks=pytest.mark.fault("P2")),
        pytest.param("LISTING_UNSAFE", "a\\evil.json", marks=pytest.mark.fault("P3")),
        pytest.param("LISTING_UNSAFE", "c:evil.json", marks=pytest.mark.fault("P3")),
        pytest.param("LISTING_UNSAFE", "a\0b", marks=pytest.mark.fault("P4")),
        pytest.param("LISTING_UNSAFE", "a\nb", marks=pytest.mark.fault("P4")),
        pytest.param("LISTING_UNSAFE", "a\u202eb", marks=pytest.mark.fault("P4")),
        pytest.param("LISTING_UNSAFE", "x" * 300, marks=pytest.mark.fault("P5")),
        pytest.param("LISTING_UNSAFE", "/".join(["x" * 200] * 10), marks=pytest.mark.fault("P5")),
        pytest.param("LISTING_UNSAFE", "config.json", marks=pytest.mark.fault("C7")),
        pytest.param("LISTING_UNSAFE", "CONFIG.json", marks=pytest.mark.fault("C7")),
    ],
)
@pytest.mark.reason("LISTING_UNSAFE")
def test_a_listing_with_an_unsafe_name_is_refused(bench: HostileHub, reason: str, name: str) -> None:
    """Before any path is built from it: nothing is written, inside or outside of the state folder."""
    bench.shelf.relist("v1.0.0", lambda rows: rows.append({"name": name, "size": 1, "sha256": ZEROS}))
    before = bench.outside()
    assert reason == refused(bench.take()).reason
    assert before == bench.outside()
    assert not (bench.folder / "state" / "incoming").exists()


@pytest.mark.fault("C7")
@pytest.mark.reason("LISTING_UNSAFE")
def test_two_forms_of_one_name_are_refused(bench: HostileHub) -> None:
    """Some file systems treat both Unicode forms as one name."""
    extra: list[Row] = [{"name": name, "size": 1, "sha256": ZEROS} for name in ("caf\u00e9.json", "cafe\u0301.json")]
    bench.shelf.relist("v1.0.0", lambda rows: rows.extend(extra))
    assert refused(bench.take()).reason == "LISTING_UNSAFE"


@pytest.mark.fault("H23")
def test_names_that_no_engine_takes_refuse_nothing(bench: HostileHub) -> None:
    """Case, joiners, colons and thousands of pictures: nothing is fetched of them, and the event has notes."""
    names = ["README.md", "readme.md", "family-\u200d.png", "12:30.png", "1:1.png"]
    names += [f"pictures/{number}.jpg" for number in range(2000)]
    extra: list[Row] = [{"name": name, "size": 1, "sha256": ZEROS} for name in names]
    bench.shelf.relist("v1.0.0", lambda rows: rows.extend(extra))

    assert isinstance(bench.take(), Sealed)
    twins, joined, many = describe_odd_names(names)
    assert twins.startswith("'README.md', 'readme.md' differ in case")
    assert joined.startswith(r"'family-\u200d.png': names with invisible characters")
    assert many.startswith("2005 files are listed")


@pytest.mark.fault("C6")
@pytest.mark.reason("LISTING_UNSAFE")
@pytest.mark.parametrize("sha", [ZEROS[1:], ZEROS + "0", "g" * 64])
def test_a_malformed_hash_is_refused(bench: HostileHub, sha: str) -> None:
    """It is not compared with anything."""
    bench.shelf.relist("v1.0.0", lambda rows: rows[0].update(sha256=sha))
    assert refused(bench.take()).reason == "LISTING_UNSAFE"


@pytest.mark.fault("C6")
def test_a_hash_in_upper_case_is_the_same_hash(bench: HostileHub) -> None:
    """A hash of another length is refused."""
    first = bench.take()
    bench.shelf.relist("v1.0.0", lambda rows: [row.update(sha256=row["sha256"].upper()) for row in rows])
    second = bench.take()
    assert isinstance(first, Sealed)
    assert first == second
    assert bench.hub.release("v1.0.0", 10.0).source_digest in ("", first.source_digest)


@pytest.mark.fault("C1")
@pytest.mark.reason("FILES_MISSING")
@pytest.mark.parametrize("name", ["configuration.json", "config.json", "vocab.json", "merges.txt", WEIGHTS])
def test_a_listing_without_a_needed_file_is_refused(bench: HostileHub, name: str) -> None:
    """It was published so."""

    def drop(rows: list[Row]) -> None:
        rows[:] = [row for row in rows if row["name"] != name]

    bench.shelf.relist("v1.0.0", drop)
    assert refused(bench.take()).reason == "FILES_MISSING"


@pytest.mark.fault("C2")
@pytest.mark.fault("P12")
@pytest.mark.parametrize("name", ["README.md", "run.py", "deep/run.py", "pytorch_model.bin"])
def test_undeclared_files_are_never_downloaded(bench: HostileHub, name: str) -> None:
    """They change neither the staged files nor the source digest."""
    first = bench.take()
    content = b"import os"
    bench.shelf.file("v1.0.0", name).parent.mkdir(exist_ok=True)
    bench.shelf.replace("v1.0.0", name, content)
    second = bench.take()
    assert isinstance(first, Sealed)
    assert first == second
    assert not [path for path in (bench.folder / "state").rglob("*") if path.name == Path(name).name]


@pytest.mark.fault("C3")
@pytest.mark.reason("FORMAT_UNKNOWN")
@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
def test_an_empty_weights_file_is_refused(bench: HostileHub, name: str) -> None:
    """Its size and hash match the listing."""
    bench.shelf.replace("v1.0.0", name, b"")
    assert refused(bench.take()).reason == "FORMAT_UNKNOWN"


@pytest.mark.fault("C4")
@pytest.mark.reason("CONTENT_MISMATCH")
@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
def test_one_flipped_bit_is_refused(bench: HostileHub, name: str) -> None:
    """Name and size match the listing."""
    path = bench.shelf.file("v1.0.0", name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = refused(bench.take())
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")


@pytest.mark.fault("C5")
@pytest.mark.fault("R15")
@pytest.mark.reason("FILE_SHORT")
def test_one_byte_short_is_not_ready(bench: HostileHub) -> None:
    """The rest may still be uploading; then it is installed."""
    path = bench.shelf.file("v1.0.0", WEIGHTS)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    result = bench.take()
    assert isinstance(result, EffectFailure)
    assert FailureKind.NOT_READY is result.kind
    path.write_bytes(content)
    assert isinstance(bench.take(), Sealed)


@pytest.mark.fault("R15")
def test_a_listed_file_that_is_missing_is_not_ready(bench: HostileHub) -> None:
    """The manifest came first, the weights come half a minute later."""
    path = bench.shelf.file("v1.0.0", WEIGHTS)
    content = path.read_bytes()
    path.unlink()
    result = bench.take()
    assert isinstance(result, EffectFailure)
    assert FailureKind.NOT_READY is result.kind
    path.write_bytes(content)
    assert isinstance(bench.take(), Sealed)


@pytest.mark.fault("C5")
@pytest.mark.reason("CONTENT_MISMATCH")
def test_one_byte_more_is_refused(bench: HostileHub) -> None:
    """Never more than the listed size is kept."""
    path = bench.shelf.file("v1.0.0", WEIGHTS)
    path.write_bytes(path.read_bytes() + b"!")
    result = bench.take()
    if isinstance(result, EffectFailure):
        assert (result.kind, result.reason) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")
    else:  # an adapter that requests only listed bytes is not affected
        assert isinstance(result, Sealed)


@pytest.mark.fault("C8")
@pytest.mark.reason("ENGINE_UNKNOWN")
@pytest.mark.parametrize("change", [{"task": "image-classification"}, {"model": {"type": "bert"}}, {"model": []}])
def test_another_task_or_model_type_is_refused(bench: HostileHub, change: dict[str, Any]) -> None:
    """No engine of this build serves it."""
    bench.shelf.publish("v1.0.1", configuration=change)
    assert refused(bench.take("v1.0.1")).reason == "ENGINE_UNKNOWN"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        fault("P13", "CONFIG_ASKS_FOR_CODE", {"plugins": ["x"]}),
        fault("P13", "CONFIG_ASKS_FOR_CODE", {"allow_remote": True}),
        fault("P13", "CONFIG_ASKS_FOR_CODE", {"pipeline": {"deep": [{"auto_map": {"AutoModel": "a.B"}}]}}),
        fault("P13", "CONFIG_ASKS_FOR_CODE", {"model": {"type": "ofa", "trust_remote_code": True}}),
        fault("P13", "CONFIG_HAS_PATH", {"pipeline": {"type": "x", "script": "/usr/bin/env"}}),
        fault("P13", "CONFIG_HAS_PATH", {"preprocessor": {"vocab": "../../other/vocab.txt"}}),
        fault("P13", "CONFIG_HAS_PATH", {"pipeline": {"url": "https://elsewhere.example/x"}}),
        fault("P13", "CONFIG_HAS_PATH", {"pipeline": {"file": "C:\\model.bin"}}),
    ],
)
def test_a_dangerous_configuration_is_refused(bench: HostileHub, reason: str, change: dict[str, Any]) -> None:
    """Keys that run code of the repository, and paths outside of the folder, at any depth."""
    bench.shelf.publish("v1.0.1", configuration=change)
    assert reason == refused(bench.take("v1.0.1")).reason


@pytest.mark.fault("H23")
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("tokenizer.json", {"model": {"vocab": {"plugins": 7, "://": 8}, "merges": ["/ /", ": //", ["~", "/"]]}}),
        ("added_tokens.json", {"plugins": 50265, "//": 50266}),
        ("tokenizer_config.json", {"special_tokens_map_file": "/home/a/map.json", "tokenizer_file": "/home/a/t.json"}),
    ],
)
def test_words_of_a_tokenizer_are_no_settings(bench: HostileHub, name: str, row: dict[str, Any]) -> None:
    """Its merges look like paths, and one of GPT-2's words is the name of a key that runs code."""
    bench.shelf.publish("v1.0.1")
    bench.shelf.replace("v1.0.1", name, json.dumps(row).encode())
    assert isinstance(bench.take("v1.0.1"), Sealed)


@pytest.mark.fault("H23")
def test_sections_that_are_never_read_refuse_nothing(bench: HostileHub) -> None:
    """The stock pipeline does not read them either, whatever is in them; keys that it follows are refused."""
    change = {"hooks": [{"allow_remote": True}], "description": "see https://elsewhere.example", "my/notes": "../x"}
    bench.shelf.publish("v1.0.1", configuration=change)
    assert isinstance(bench.take("v1.0.1"), Sealed)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"work_dir": "/home/somebody/runs", "hooks": [{"type": "CheckpointHook"}]}},
        {"dataset": {"train": {"name": "https://elsewhere.example/data"}}},
        {"plugins": [], "allow_remote": False},
        {"train": {"trust_remote_code": True, "plugins": ["x"]}},
        {"description": "see https://elsewhere.example/model"},
        {"num_bins": 1000, "num_codes": 8192},
        {"description": "a/b means a or b .. or both"},
    ],
)
def test_sections_of_training_are_accepted(bench: HostileHub, change: dict[str, Any]) -> None:
    """They are never read; a code key with the value false is harmless."""
    bench.shelf.publish("v1.0.1", configuration=change)
    assert isinstance(bench.take("v1.0.1"), Sealed)


@pytest.mark.reason("CONFIG_BROKEN")
@pytest.mark.parametrize(
    "content", [b"[]", b"{", b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", b'{"a": "' + b"x" * (9 << 20) + b'"}']
)
def test_a_malformed_configuration_is_refused(bench: HostileHub, content: bytes) -> None:
    """Not a JSON object, nested too deeply, or too large."""
    bench.shelf.replace("v1.0.0", "config.json", content)
    assert refused(bench.take()).reason == "CONFIG_BROKEN"


@pytest.mark.parametrize(
    ("reason", "name", "content"),
    [
        fault("P12", "EXECUTABLE", WEIGHTS, b"\x7fELF\x02\x01\x01" + bytes(100)),
        fault("P12", "EXECUTABLE", "merges.txt", b"#!/bin/sh\necho\n"),
        fault("P12", "EXECUTABLE", "vocab.json", b"MZ\x90\0" + bytes(100)),
        fault("C3", "FORMAT_UNKNOWN", WEIGHTS, b"PK\x03\x04" + bytes(100)),
        fault("C3", "FORMAT_UNKNOWN", WEIGHTS, (1 << 40).to_bytes(8, "little") + b"{}" + bytes(100)),
        fault("C3", "FORMAT_UNKNOWN", WEIGHTS, (20).to_bytes(8, "little") + b"[1, 2]".ljust(20) + bytes(100)),
        fault("C3", "FORMAT_UNKNOWN", "merges.txt", b"\xff\xfe not utf-8"),
        fault("C3", "FORMAT_UNKNOWN", "merges.txt", b"#version\na\0b\n"),
        fault("C3", "FORMAT_UNKNOWN", "vocab.json", b"not found"),
    ],
)
def test_the_content_must_match_the_extension(bench: HostileHub, reason: str, name: str, content: bytes) -> None:
    """And nothing executable is kept."""
    bench.shelf.replace("v1.0.0", name, content)
    assert reason == refused(bench.take()).reason


@pytest.mark.fault("P12")
@pytest.mark.reason("FORMAT_UNKNOWN")
def test_a_code_file_named_by_the_configuration_is_refused(bench: HostileHub) -> None:
    """The answer map may have any name, but not any extension."""
    configuration = {"model": {"type": "ofa", "answer2label": "answers.py"}}
    bench.shelf.publish("v1.0.1", configuration=configuration)
    bench.shelf.replace("v1.0.1", "answers.py", b"import os\n")
    assert refused(bench.take("v1.0.1")).reason == "FORMAT_UNKNOWN"


@pytest.mark.fault("P1")
@pytest.mark.reason("UNSAFE_NAME")
def test_a_file_in_a_subfolder_is_refused(bench: HostileHub) -> None:
    """Even if the listing contains it: all files are at the top level."""
    configuration = {"model": {"type": "ofa", "answer2label": "deep/answers.json"}}
    bench.shelf.publish("v1.0.1", configuration=configuration)
    bench.shelf.file("v1.0.1", "deep").mkdir()
    bench.shelf.replace("v1.0.1", "deep/answers.json", b"{}")
    assert refused(bench.take("v1.0.1")).reason == "UNSAFE_NAME"


@pytest.mark.fault("R3")
@pytest.mark.reason("LISTING_CHANGED")
def test_a_listing_that_changes_during_the_download_is_tried_again(bench: HostileHub) -> None:
    """The next poll installs the new content."""
    other = weights_of("other")
    changing = Changing(bench.hub, lambda: bench.shelf.replace("v1.0.0", WEIGHTS, other))
    failed = refused(bench.take(hub=changing))
    assert (failed.kind, failed.reason) == (FailureKind.NOT_READY, "LISTING_CHANGED")
    assert isinstance(bench.take(), Sealed)
    kept = list((bench.folder / "state" / "sources").rglob(WEIGHTS))
    assert [hashlib.sha256(other).hexdigest()] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept]


def test_a_bundle_records_its_origin_and_its_checks(bench: HostileHub) -> None:
    """All checks that this build runs before sealing; signatures are not among them."""
    sealed = bench.take()
    assert isinstance(sealed, Sealed)
    folder = bench.folder / "state" / "bundles" / sealed.bundle_digest.replace(":", "-")
    row = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["provenance"]
    place = bench.hub.place
    assert {"kind": place.kind.value, "model": place.model, "endpoint": place.endpoint} == row["place"]
    assert (row["revision"], row["fetched_at"] <= row["verified_at"]) == ("v1.0.0", True)
    assert [check.title for check in CHECKS if check.number not in (8, 15)] == row["checked"]
