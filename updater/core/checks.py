"""The numbered list that a revision passes before it may serve, and which reason belongs to which number.

The code carries the numbers: `perform`, then `staging`, `verify`, `configuration`, `formats` and `compatible` in
`store`, the conversion's child in `inference/runner`. docs/verification.md is printed from this table, with the tests.
"""

from dataclasses import dataclass

from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import EffectFailed


@dataclass(frozen=True, slots=True)
class Check:
    """One number of the list."""

    number: int
    name: str  # short, for people
    what: str  # whole sentences
    where: str  # at which moment it is done
    reasons: tuple[str, ...]  # of a refusal, for machines; empty: a place that is kept free

    @property
    def title(self) -> str:
        """As a sealed bundle says it was passed."""
        return f"{self.number} {self.name}"


class CheckFailed(EffectFailed):
    """A revision does not pass one number of the list.

    Attributes:
        check: which.
    """

    def __init__(self, check: Check, failed: EffectFailure) -> None:
        super().__init__(failed)
        self.check = check


STATE_FOLDER = Check(
    1,
    "state folder",
    "No part of the state folder's own path is a name by which the hub's library would run a model's code.",
    "at every start",
    ("STATE_DIR_TRUSTED",),
)
NAMES = Check(
    2,
    "names",
    "Every listed name is relative, of plain parts, without `..`, backslash, drive letter or control character, not"
    " longer than a file system takes, and stands once, also after NFC and case folding. A taken file has one part.",
    "on the listing, before any path is made of it, and on what was staged",
    ("LISTING_UNSAFE", "UNSAFE_NAME"),
)
REGULAR = Check(
    3,
    "regular files",
    "No link, folder, device or socket, and no file with a second name by which it could be changed.",
    "while fetching, and on what was staged",
    ("NOT_REGULAR",),
)
FILE_SET = Check(
    4,
    "file set",
    "Exactly the files that the engine declares: none more, none less.",
    "on the listing, and on what was staged",
    ("FILES_MISSING", "FILES_UNKNOWN"),
)
SIZES = Check(
    5,
    "sizes",
    "Each file has the listed size, and all together are not more than `max_revision_bytes`. Less than listed may"
    " still arrive: such a revision is not ready, which blames nothing.",
    "on the listing, while fetching, and on what was staged",
    ("TOO_LARGE", "FILE_SHORT", "SIZE_MISMATCH"),
)
HASHES = Check(
    6,
    "SHA-256",
    "Each file has the listed SHA-256: while it comes, and read again from the disk after it was synced there.",
    "while fetching, and on what was staged",
    ("CONTENT_MISMATCH",),
)
SOURCE = Check(
    7,
    "source digest",
    "Together they are the revision that was decided for, by its digest.",
    "on what was staged",
    ("SOURCE_MISMATCH",),
)
SIGNATURE = Check(
    8,
    "signature",
    "The place of signatures, kept free: nothing is checked here yet, and no bundle says that it was.",
    "never yet",
    (),
)
NOT_EXECUTABLE = Check(
    9,
    "nothing executable",
    "No file may be run: none has an executable mode, or begins as a program, a library or a script does.",
    "on what was staged",
    ("EXECUTABLE",),
)
FORMATS = Check(
    10,
    "formats",
    "Each file is of an allow-listed format by its ending and by its content: JSON, text, safetensors, an archive of"
    " tensors.",
    "on what was staged",
    ("FORMAT_UNKNOWN",),
)
CONFIGURATION_KEYS = Check(
    11,
    "configuration keys",
    "Sections of `configuration.json` are allow-listed (`known_sections` in `hotslot.toml` adds to them); no key"
    " anywhere asks for code of the repository (`plugins`, `allow_remote`, `auto_map` …),"
    " and no value leads out of the folder.",
    "on what was staged",
    ("CONFIG_BROKEN", "CONFIG_KEY_UNKNOWN", "CONFIG_ASKS_FOR_CODE", "CONFIG_HAS_PATH"),
)
ENGINE = Check(
    12,
    "engine",
    "An engine of this build serves its task and model type.",
    "on the listing, and on what was staged",
    ("ENGINE_UNKNOWN",),
)
UNCHANGED = Check(
    13,
    "nothing changed",
    "The hub lists the same at the end as at the beginning, and no staged file was touched while it was checked or"
    " converted. Nobody is blamed: it is looked at again.",
    "after fetching, after checking, after converting",
    ("LISTING_CHANGED", "FILES_CHANGED", "SOURCE_CHANGED"),
)
WEIGHTS = Check(
    14,
    "weights and configuration",
    "Names, types, shapes and finiteness of all tensors, the vocabulary and the answers are those that the"
    " configuration promises. A child with limits reads them; nothing of them is run.",
    "while converting",
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
    "It does what serves does: the same task, engine, model type and picture size, the same labels in the same order,"
    " every word under its number (new ones may come behind). Nothing to compare with at a first install; what a"
    " bundle of an older hotslot does not say of itself is not compared.",
    "the task before converting, the rest after it",
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


def refused(check: Check, reason: str, message: str, kind: FailureKind = FailureKind.PERMANENT) -> CheckFailed:
    """The failure of a revision at one number of the list.

    Raises:
        RuntimeError: the reason is not one of this number's.
    """
    if reason not in check.reasons:
        raise RuntimeError(f"{reason} is no reason of check {check.title}")
    return CheckFailed(check, EffectFailure(kind, reason, f"check {check.title}: {message}"))


def by_reason(reason: str, message: str) -> CheckFailed | EffectFailed:
    """The same for a reason that comes from code which does not know the list."""
    check = next((row for row in CHECKS if reason in row.reasons), None)
    if check is None:
        return EffectFailed.permanent(reason, message)
    return refused(check, reason, message)
