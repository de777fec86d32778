"""Broken and hostile weights are refused by a real conversion process, before torch is imported."""

import io
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from common.sealing import ConvertLimits, run_convert
from common.source import ConversionRefused
from dev.parity.make_model import Recipe, make_model
from inference.runner.conversion.state_dict import TensorNames, match_names
from inference.runner.conversion.tensor_location import MAX_HEADER_BYTES, MAX_TENSORS
from tests.ofa.conftest import Publish

MIB = 1 << 20
BIN, FLAT = "pytorch_model.bin", "model.safetensors"
LITTLE = ConvertLimits(memory_bytes=256 * MIB)  # far too little to import torch with
WAS_HERE = Path("/tmp/hotslot-was-here")  # noqa: S108 - what the hostile pickles would make
Refusal = Callable[..., str]


@pytest.fixture
def refusal(publish: Publish, tmp_path: Path) -> Refusal:
    """Publish a folder with other weights and convert it in a child: the sentence that comes back."""

    def refused(files: dict[str, bytes], limits: ConvertLimits = LITTLE, **changes: dict[str, object]) -> str:
        folder = publish(without=(BIN,), **changes)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        state = tmp_path / "state"
        with pytest.raises(ConversionRefused) as caught:
            run_convert(folder, state, "r", limits)
        assert not WAS_HERE.exists()
        assert not any((state / "staging").iterdir())
        assert not (state / "bundles").exists()
        return str(caught.value)

    return refused


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Name the command."""
        return os.system, (f"touch {WAS_HERE}",)


def saved(tensors: object, *, is_old: bool = False) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=not is_old)
    return file.getvalue()


def archive(records: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive, by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as made:
        for name, content in records.items():
            made.writestr(name, content)
    return file.getvalue()


def repacked(tensors: dict[str, Tensor], **changes: bytes) -> bytes:
    """What torch.save writes, with some records changed."""
    with zipfile.ZipFile(io.BytesIO(saved(tensors))) as made:
        records = {name: made.read(name) for name in made.namelist()}
    folder = next(iter(records)).split("/")[0]
    return archive({**records, **{f"{folder}/{name}": content for name, content in changes.items()}})


def flat(header: object, data: bytes = b"") -> bytes:
    """A safetensors file, by hand."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def row(begin: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    """One tensor of a safetensors header."""
    return {"dtype": "F32", "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


X, Y = "encoder.layer_norm.weight", "encoder.layer_norm.bias"  # tensors that the model has
ONE = {X: torch.zeros(4)}
HELD = torch.zeros(8)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [bytes, lambda pickled: archive({"archive/data.pkl": pickled})])
@pytest.mark.fault("P9")
@pytest.mark.fault("P10")
def test_pickles_that_run_code_are_refused(protocol: int, wrap: Callable[[bytes], bytes], refusal: Refusal) -> None:
    """A pickle with `__reduce__` is refused, whatever its protocol, bare or in an archive; no code of it runs."""
    sentence = refusal({BIN: wrap(pickle.dumps(OrderedDict(x=Hostile()), protocol))})

    if wrap is bytes and protocol < 2:  # which torch.save never used
        assert sentence == f"{BIN} is not what torch.save writes, neither an archive nor a pickle"
        return
    assert sentence.startswith(f"{BIN} uses the pickle opcode" if protocol == 0 else f"{BIN} imports ")
    assert "supported: " in sentence


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (eval, "imports __builtin__.eval, supported: tensors only"),
        (OrderedDict(x=getattr), "imports __builtin__.getattr"),
        (torch.nn.Linear(1, 1), "imports torch.nn.modules.linear.Linear"),
        (OrderedDict({1: torch.zeros(1)}), "holds a dictionary without tensors, supported: named tensors"),
        (OrderedDict({(1, 2): torch.zeros(1)}), "has a dictionary whose key is a tuple, supported: a state dict"),
        (OrderedDict(x={"y": torch.zeros(1)}), "holds no tensor of this model: it has 'y' and the like, expected"),
        ([torch.zeros(1)], "holds a list, supported: named tensors"),
        (7, "is a pickle, but not of torch.save"),
        (b"PK", "imports _codecs.encode"),
    ],
)
@pytest.mark.fault("P9")
def test_pickles_of_other_objects_are_refused(value: object, sentence: str, refusal: Refusal) -> None:
    """Functions, modules, checkpoints and lists are not state dicts."""
    is_torch = not isinstance(value, int | bytes)

    assert sentence in refusal({BIN: saved(value) if is_torch else pickle.dumps(value, 2)})


HALF = "\ud800"  # of a surrogate pair: a pickle may have it, and no encoding takes it


@pytest.mark.fault("P9")
def test_names_that_are_no_text_are_written_as_escape_sequences(refusal: Refusal) -> None:
    """The sentence can be kept and shown: it is that of a refusal, not of an updater that fails again and again."""
    half = HALF.encode("utf-8", "surrogatepass")
    pickled = b"\x80\x04\x8c\x03" + half + b"\x8c\x01x\x93."  # two short strings, of which STACK_GLOBAL makes a name
    assert r"imports \ud800.x, supported: tensors only" in refusal({BIN: archive({"archive/data.pkl": pickled})})

    names = match_names(BIN, [X, Y, f"{HALF}.surplus"], TensorNames((X, Y), (X, Y)))
    assert r"\ud800.surplus" in names.describe(BIN)[0].encode().decode()


def tar(content: bytes) -> bytes:
    """A tar archive of one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        entry = tarfile.TarInfo("pytorch_model.bin")
        entry.size = len(content)
        made.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (archive({BIN: saved(ONE)}), "is a zip archive with 'pytorch_model.bin' in it: unpack it"),
        (
            archive({"archive/inner.zip": archive({"a/b": b""})}),
            "contains 'archive/inner.zip', supported: records that torch.save",
        ),
        (repacked(ONE, **{"code/a.py": b"import os"}), "code/a.py', supported: records that torch.save writes"),
        (
            repacked(ONE, **{"data/0": archive({"a/b": b""})}),
            f"the storage of tensor {X} has 104 bytes, which is not its declared",
        ),
        (archive({"archive/../../x": b""}), "contains 'archive/../../x', supported"),
        (archive({"archive/version": b"3\n"}), "lacks the record 'data.pkl'"),
        (tar(saved(ONE)), "is a tar archive: unpack it, and publish the files in it"),
        (b"\x1f\x8b\x08" + bytes(600), "is a gzip archive: unpack it, and publish the files in it"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
    ],
)
@pytest.mark.fault("P8")
def test_nested_archives_are_refused(content: bytes, sentence: str, refusal: Refusal) -> None:
    """An archive in an archive, or of another kind, is never opened."""
    assert sentence in refusal({BIN: content})


HOSTILE = pickle.dumps(OrderedDict(x=Hostile()), 2)


@pytest.mark.parametrize(
    ("files", "model", "sentence"),
    [
        ({FLAT: HOSTILE}, {}, f"{FLAT} is not a safetensors file"),
        ({FLAT: saved(ONE)}, {}, f"{FLAT} is not a safetensors file"),
        ({BIN: save(ONE)}, {}, f"{BIN} "),
        (
            {f"{FLAT}.index.json": b'{"weight_map": {"x": "w.pkl"}}', "w.pkl": HOSTILE},
            {},
            "names 'w.pkl', supported: names that end in .safetensors",
        ),
        (
            {f"{FLAT}.index.json": b'{"weight_map": {"x": "w.safetensors"}}', "w.safetensors": HOSTILE},
            {},
            "w.safetensors is not a safetensors file: torch.save wrote it",
        ),
        (
            {f"{BIN}.index.json": b'{"weight_map": {"x": "w.safetensors"}}', "w.safetensors": save(ONE)},
            {},
            "names 'w.safetensors', supported: names that end in .bin",
        ),
        (
            {BIN: saved(ONE), "words.pkl": HOSTILE},
            {"answer2label": "words.pkl"},
            "words.pkl is a pickle, supported: JSON",
        ),
        ({BIN: b"version https://git-lfs.github.com/spec/v1\n"}, {}, f"{BIN} is a Git LFS pointer"),
    ],
)
@pytest.mark.fault("P11")
def test_the_suffix_decides_the_format(
    files: dict[str, bytes], model: dict[str, object], sentence: str, refusal: Refusal
) -> None:
    """A pickle under another name is not read as a pickle."""
    assert sentence in refusal(files, model=model)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: its upload was not finished"),
        (b"\xff" * 7, f"the header alone has {(1 << 56) - 1}): download it again"),
        ((1 << 60).to_bytes(8, "little") + b"{}", f"the header alone has {1 << 60}): download it again"),
        ((1 << 20).to_bytes(8, "little") + b"{}", "is cut off or damaged (has 10 bytes, "),
        (flat(b"[" * MIB), "invalid JSON in header"),
        (flat(b"{" + b'"a":{' * MIB), "recursion limit exceeded"),
        (flat(b'{"x": 1'), "invalid JSON in header"),
        (flat(b"\xff\xfe"), "invalid UTF-8 in header"),
        (flat([1]), "invalid JSON in header"),
        (flat(b'{"a": 1, "a": 2}'), "invalid JSON in header"),
        (
            flat(b'{"a": %b, "a": %b}' % ((json.dumps(row(0, 16)).encode(),) * 2), bytes(16)),
            "names something twice",
        ),
        (
            flat({f"t{number}": row(0, 0) for number in range(MAX_TENSORS + 1)}),
            f"names {MAX_TENSORS + 1} tensors, supported: {MAX_TENSORS}",
        ),
        (flat({"x": row(0, 16), "y": row(8, 24)}, bytes(24)), "invalid offset for tensor `y`"),
        (flat({"x": row(0, 16), "y": row(0, 16)}, bytes(16)), "invalid offset for tensor"),
        (flat({"x": row(0, 16)}, bytes(12)), "is cut off (has 82 bytes, needs 86): download it again"),
        (flat({"x": row(4, 16)}, bytes(16)), "invalid offset for tensor `x`"),
        (flat({"x": row(0, 16)}, bytes(99)), "is damaged (has 169 bytes, its tensors 86): download it again"),
        (flat({"x": row(0, 16, [1 << 40, 1 << 40])}, bytes(16)), "overflow computing buffer size"),
        (flat({"x": row(16, 0)}), "invalid JSON in header"),
        (flat({"x": {**row(0, 16), "shape": [-4]}}, bytes(16)), "invalid JSON in header"),
        (flat({"x": {**row(0, 16), "shape": [1] * 9}}, bytes(16)), "invalid shape, data type, or offset"),
        (
            flat({X: {**row(0, 16), "dtype": "F8_E4M3", "shape": [16]}}, bytes(16)),
            f"{X} is of type F8_E4M3, supported: F64",
        ),
        (flat({"x": {"dtype": "F32"}}), "missing field `shape`"),
        (
            flat(b'{"x": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'),
            "out of range",
        ),
    ],
)
def test_invalid_safetensors_headers_are_refused(content: bytes, sentence: str, refusal: Refusal) -> None:
    """Wrong lengths, too many entries, deep nesting, overlapping or missing bytes."""
    assert sentence in refusal({FLAT: content})


def test_a_header_that_is_too_long_is_refused(publish: Publish, tmp_path: Path) -> None:
    """Its length is checked before it is read."""
    folder = publish(without=(BIN,))
    length = 10_000_000 * 60
    (folder / FLAT).write_bytes(length.to_bytes(8, "little"))
    os.truncate(folder / FLAT, length + 8)

    with pytest.raises(ConversionRefused, match=f"header of {length} bytes, supported: {MAX_HEADER_BYTES}"):
        run_convert(folder, tmp_path, "r", LITTLE)


def lying(tensors: dict[str, Tensor], old: bytes, new: bytes) -> bytes:
    """What torch.save writes, with some bytes of its pickle replaced."""
    with zipfile.ZipFile(io.BytesIO(saved(tensors))) as made:
        name = next(name for name in made.namelist() if name.endswith("data.pkl"))
        pickled = made.read(name)
    assert old in pickled
    return repacked(tensors, **{"data.pkl": pickled.replace(old, new)})


def ended(content: bytes, entries: int = 0, size: int = 0, pointer: int = 0) -> bytes:
    """A file of torch with another end: its directory in the long form, and the pointer to that."""
    far = bytearray(content[-98:])
    for place, value in ((32, entries), (40, size), (64, pointer)):
        if value:
            struct.pack_into("<Q", far, place, value)
    return content[:-98] + bytes(far)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (archive({"archive/data.pkl": bytes(4 * MIB)}, zipfile.ZIP_DEFLATED), "record 'data.pkl' is compressed"),
        (archive({"archive/data.pkl": bytes(9 * MIB)}), f"pickle of {9 * MIB} bytes, supported: {MAX_HEADER_BYTES}"),
        (saved({X: torch.zeros(1).expand(1 << 40)}), "has strides (0,), supported: dense ones"),
        (saved({X: HELD[::2]}), "has strides (2,), supported: dense ones"),
        (saved({X: HELD.as_strided((4, 4), (1, 1))}), "has strides (1, 1), supported: dense ones"),
        (saved({X: HELD[:5], Y: HELD[3:]}), f"tensors {X} and {Y} overlap"),
        (saved({X: HELD[:5], Y: HELD[3:]}, is_old=True), f"tensors {X} and {Y} overlap"),
        (lying({X: HELD[:4]}, b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), f"tensor {X} ends after the end of its storage"),
        (
            lying({X: HELD}, b"cpuq\x06K\x08", b"cpuq\x06J\xff\xff\xff\x7f"),
            "32 bytes, which is not its declared size",
        ),
        (lying({X: HELD[:4]}, b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), "has an invalid shape, strides or offset"),
        (lying({X: HELD}, b"FloatStorage", b"QuietStorage"), "imports torch.QuietStorage, supported: tensors only"),
        (repacked(ONE, byteorder=b"big"), "contains big-endian numbers"),
        (archive({"a/data.pkl": b"\x80\x02}" + b"q\x00h\x00" * MIB}), "malformed"),
        (archive({"a/data.pkl": b"\x80\x02" + b"r\xff\xff\xff\x7f" * 9 + b"."}), "malformed"),
        (archive({"a/data.pkl": b"\x80\x02\x8d" + b"\xff" * 8 + b"x."}), "malformed"),
        (archive({"a/data.pkl": b"\x80\x02" + b")" * 9 + b"\x86" * 9 + b"s."}), "malformed"),
        (saved(ONE)[:-30], "its archive has no valid end record"),
        (ended(saved(ONE), entries=1 << 40), f"an archive of {1 << 40} records in a directory"),
        (ended(saved(ONE), size=1 << 40), f"in a directory of {1 << 40} bytes, which is too large"),
        (ended(saved(ONE), pointer=1), "its archive has no valid end record"),
        (saved(ONE)[:-98] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 1 << 31, 0, 0), "which is too large"),
        (saved(ONE)[:-98] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 64, 1 << 31, 0), "malformed"),
        (b"PK\x03\x04", "its archive has no valid end record"),
        (saved(ONE, is_old=True)[:-8], "ends after the end of the file"),
        (b"", "is empty: its upload was not finished"),
        (saved(ONE, is_old=True)[:40], "malformed"),
    ],
)
def test_invalid_torch_files_are_refused(content: bytes, sentence: str, refusal: Refusal) -> None:
    """Compressed records, expanded or overlapping tensors, wrong sizes."""
    assert sentence in refusal({BIN: content})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": {"vocab_size": 1016}},
            "the vocabulary uses ids up to 1023, config.json: vocab_size is 1016",
        ),
        (
            {"architecture": {"vocab_size": 1024 + 9193}},
            "config.json: vocab_size is 10217, but pytorch_model.bin was saved with 10216",
        ),
    ],
)
@pytest.mark.fault("C9")
def test_a_vocabulary_that_disagrees_with_the_embedding(
    changes: dict[str, dict[str, object]], sentence: str, publish: Publish, tmp_path: Path
) -> None:
    """The message names both numbers."""
    with pytest.raises(ConversionRefused) as caught:
        run_convert(publish(**changes), tmp_path / "state", "r", LITTLE)

    assert sentence in str(caught.value)


@pytest.mark.fault("C9")
def test_a_vocabulary_larger_than_the_embedding_is_refused(publish: Publish, tmp_path: Path) -> None:
    """Also if the configuration agrees with the weights."""
    folder = publish(without=("vocab.json",))
    words = {**json.loads((publish() / "vocab.json").read_text(encoding="utf-8")), "late": 10216}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")

    with pytest.raises(ConversionRefused, match=r"uses ids up to 10216, config\.json: vocab_size is 10216"):
        run_convert(folder, tmp_path / "state", "r", LITTLE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"patch_image_size": 256}},
            "size is 256, supported: at most 16 × image_bucket_size = 224",
        ),
        (
            {"model": {"patch_image_size": 256}, "architecture": {"image_bucket_size": 16}},
            "config.json: image_bucket_size is 16, but pytorch_model.bin was saved with 14",
        ),
    ],
)
@pytest.mark.fault("C10")
def test_another_picture_size_than_the_weights_is_refused(
    changes: dict[str, dict[str, object]], sentence: str, tmp_path: Path
) -> None:
    """A model for pictures of 224 pixels whose configuration says 256 lacks positions."""
    folder = tmp_path / "published"
    folder.mkdir()
    make_model(folder, Recipe(architecture={"image_bucket_size": 14}, pipeline={"patch_image_size": 224}))
    for name, keys in (("configuration.json", changes["model"]), ("config.json", changes.get("architecture", {}))):
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        (found["model"] if name == "configuration.json" else found).update(keys)
        (folder / name).write_text(json.dumps(found), encoding="utf-8")

    with pytest.raises(ConversionRefused) as caught:
        run_convert(folder, tmp_path / "state", "r", LITTLE)

    assert sentence in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.fault("C11")
def test_parameters_that_are_not_finite_are_refused(number: float, publish: Publish, tmp_path: Path) -> None:
    """The conversion names the tensor that contains NaN or infinity."""
    folder = publish(without=(BIN,))
    tensors = torch.load(publish() / BIN, weights_only=True)
    tensors["decoder.layers.1.fc2.weight"][5, 7] = number
    torch.save(tensors, folder / BIN)

    with pytest.raises(ConversionRefused) as caught:
        run_convert(folder, tmp_path / "state", "r", ConvertLimits())

    sentence = "tensor decoder.layers.1.fc2.weight holds NaN or infinity, supported: finite numbers"
    assert str(caught.value) == f"pytorch_model.bin: {sentence}"
    assert not (tmp_path / "state" / "bundles").exists()


def test_a_conversion_ends_with_its_parent(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """When the updater is killed, its conversion ends too."""
    command = [sys.executable, "-m", "inference.runner.convert", "--source", str(sources("plain"))]
    command += ["--into", str(tmp_path), "--engine", "ofa", "--revision", "r"]
    start = "import os, subprocess, sys; print(subprocess.Popen([*sys.argv[1:], '--parent', str(os.getpid())]).pid)"
    starter = subprocess.Popen(
        [sys.executable, "-c", f"{start}; sys.stdout.flush(); sys.stdin.read()", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with starter:
        assert starter.stdout is not None
        child = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    ended = select.select([child], [], [], 30)[0]
    os.close(child)

    assert ended
    assert not (tmp_path / "bundle.json").exists()
