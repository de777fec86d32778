"""The numbered checks that a revision must pass before it may serve, and the reasons of their failures.

They run in `perform`, `store/staging`, `store/verify`, `store/formats` and, for 14, in the conversion's child process.
docs/verification.md is generated from this table.
"""

from dataclasses import dataclass

from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import EffectFailed


@dataclass(frozen=True, slots=True)
class Check:
    """A numbered check of the verification, as docs/verification.md lists it."""

    number: int
    name: str  # short, for people
    what: str  # what must hold, in whole sentences
    where: str  # when it runs
    reasons: tuple[str, ...]  # of a failure, for machines; empty for a reserved number

    @property
    def title(self) -> str:
        """Number and name, as recorded in a sealed bundle."""
        return f"{self.number} {self.name}"


class CheckFailed(EffectFailed):
    """A revision has failed a check.

    Attributes:
        check: the failed one.
    """

    def __init__(self, check: Check, failed: EffectFailure) -> None:
        super().__init__(failed)
        self.check = check


STATE_FOLDER = Check(
    1,
    "state folder",
    "No part of the path of the state folder is a name for which the hub's library would run code of a model.",
    "at every start",
    ("STATE_DIR_TRUSTED",),
)
NAMES = Check(
    2,
    "names",
    "Every listed name is a relative path without `..`, backslash, drive letter or control characters, not longer than"
    " file systems allow. Names at the top level that an engine may declare (`.json`, `.txt`, `.safetensors`, `.bin`)"
    " are unique, also after NFC normalization and case folding. Declared files are at the top level.",
    "on the listing, before any path is built from it, and on the staged files",
    ("LISTING_UNSAFE", "UNSAFE_NAME"),
)
REGULAR = Check(
    3,
    "regular files",
    "There are no links, folders, devices or sockets, and no files with a second hard link.",
    "during the download, and on the staged files",
    ("NOT_REGULAR",),
)
FILE_SET = Check(
    4,
    "file set",
    "The files are exactly those that the engine declares.",
    "on the listing, and on the staged files",
    ("FILES_MISSING", "FILES_UNKNOWN"),
)
SIZES = Check(
    5,
    "sizes",
    "Each file has the listed size, and the total is at most `max_revision_bytes`. A file that is shorter than listed"
    " may still be uploading: the revision is not ready yet, and is not quarantined.",
    "on the listing, during the download, and on the staged files",
    ("TOO_LARGE", "FILE_SHORT", "SIZE_MISMATCH"),
)
HASHES = Check(
    6,
    "SHA-256",
    "Each file has the listed SHA-256, computed during the download and again from the synced file on disk. If the hub"
    " lists none, it is computed from the synced file, and the bundle does not record this check as passed;"
    ' `missing_hashes = "refuse"` in `hotslot.toml` refuses such a revision.',
    "during the download, and on the staged files",
    ("CONTENT_MISMATCH", "HASH_MISSING"),
)
SOURCE = Check(
    7,
    "source digest",
    "The files together have the source digest of the update.",
    "on the staged files",
    ("SOURCE_MISMATCH",),
)
SIGNATURE = Check(
    8,
    "signature",
    "Reserved for signatures: nothing is checked yet, and no bundle records this check.",
    "not implemented",
    (),
)
NOT_EXECUTABLE = Check(
    9,
    "nothing executable",
    "No file has an executable mode, or starts like a program, a library or a script.",
    "on the staged files",
    ("EXECUTABLE",),
)
FORMATS = Check(
    10,
    "formats",
    "Each file has an allow-listed format, by its extension and its content: JSON, text, safetensors, or a PyTorch"
    " archive.",
    "on the staged files",
    ("FORMAT_UNKNOWN",),
)
CONFIGURATION_KEYS = Check(
    11,
    "configuration keys",
    "In the sections of `configuration.json` that are read (unknown ones are not), and in other JSON files except lists"
    " of words, no key would run code of the repository (`plugins`, `allow_remote`, `auto_map` …), and no value is a"
    " path that leaves the folder.",
    "on the staged files",
    ("CONFIG_BROKEN", "CONFIG_ASKS_FOR_CODE", "CONFIG_HAS_PATH"),
)
ENGINE = Check(
    12,
    "engine",
    "This build has an engine for its task and model type.",
    "on the listing, and on the staged files",
    ("ENGINE_UNKNOWN",),
)
UNCHANGED = Check(
    13,
    "nothing changed",
    "The hub lists the same files after the download as before, and no staged file was changed during the checks or the"
    " conversion. Otherwise the revision is tried again later.",
    "after the download, after the checks, after the conversion",
    ("LISTING_CHANGED", "FILES_CHANGED", "SOURCE_CHANGED"),
)
WEIGHTS = Check(
    14,
    "weights and configuration",
    "The names, types and shapes of all tensors, the vocabulary and the answers match the configuration, and all"
    " numbers are finite. A child process with limits reads them; no code of the revision is run.",
    "during the conversion",
    (
        "CONFIG_UNSUPPORTED",
        "WEIGHTS_BROKEN",
        "VOCABULARY_BROKEN",
        "ANSWERS_UNSUPPORTED",
        "MEMORY_LIMIT",
        "CPU_LIMIT",
    ),
)
COMPATIBLE = Check(
    15,
    "compatible",
    "It has the same task, engine, model type and picture size as the serving bundle, the same labels in the same"
    " order, and the same number for every word (new words may be appended). A revision with other labels is HELD with"
    " the difference, which a person may approve. A first install is not compared, and neither is what a bundle of an"
    " older build does not record.",
    "the task before the conversion, the rest after it",
    ("TASK_CHANGED", "TYPE_CHANGED", "PICTURE_SIZE_CHANGED", "VOCABULARY_CHANGED", "LABELS_CHANGED"),
)

CHECKS: tuple[Check, ...] = (
    STATE_FOLDER,
    NAMES,
    REGULAR,
    FILE_SET,
    SIZES,
    HASHES,
    SOURCE,
    SIGNATURE,
    NOT_EXECUTABLE,
    FORMATS,
    CONFIGURATION_KEYS,
    ENGINE,
    UNCHANGED,
    WEIGHTS,
    COMPATIBLE,
)


# What was received, or lies in a folder hub, is not what was listed. That says nothing about the content that the
# digest names: it is fetched again, and nothing is quarantined.
MISMATCH_REASONS = frozenset({"CONTENT_MISMATCH", "SIZE_MISMATCH", "SOURCE_MISMATCH", "NOT_REGULAR"})


def make_check_failure(check: Check, reason: str, message: str, kind: FailureKind | None = None) -> CheckFailed:
    """Make the failure of a check; by default TRANSIENT for a mismatch, else PERMANENT.

    Raises:
        RuntimeError: the reason does not belong to the check.
    """
    if reason not in check.reasons:
        raise RuntimeError(f"check {check.title} has no reason {reason}")
    if kind is None:
        kind = FailureKind.TRANSIENT if reason in MISMATCH_REASONS else FailureKind.PERMANENT
    return CheckFailed(check, EffectFailure(kind, reason, f"check {check.title}: {message}"))


def make_failure_by_reason(reason: str, message: str) -> CheckFailed | EffectFailed:
    """Make the failure for a reason of code that does not know the checks, for example the converter."""
    check = next((row for row in CHECKS if reason in row.reasons), None)
    if check is None:
        return EffectFailed.permanent(reason, message)
    return make_check_failure(check, reason, message)
