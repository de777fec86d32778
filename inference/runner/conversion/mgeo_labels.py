"""Reads the labels of a published MGeo: from label_mapping.json, or from the configuration."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES
from common.source import ConversionRefused
from inference.runner.conversion.config_file import ConfigSection, read_object, read_section, show_value
from inference.runner.conversion.refusals import refusing

ARCHITECTURE = "config.json"
LABEL_MAPPING = "label_mapping.json"
MAX_LABELS = 4096
DISAGREEING_NOTE = (
    "config.json has other labels than label_mapping.json; those of label_mapping.json are used, as by ModelScope's"
    " pipeline"
)
NUMBERS_NOTE = (
    "the same labels have other numbers in config.json and label_mapping.json: one of the two files is wrong; those of"
    " label_mapping.json are used, as by ModelScope's pipeline"
)
_PLACEHOLDER = re.compile(r"LABEL_[0-9]+")
_POSITIONS = "BIES"  # first letters of labels that belong to a span; "O" is the only label beside them


def read_labels(folder: Path, top: ConfigSection) -> tuple[tuple[str, ...], str]:
    """Return the labels by number, and from where: the first place where ModelScope's pipeline would find them.

    Raises:
        ConversionRefused: there are no labels, or they are not supported.
    """
    sections = [top.get_section("model"), top.get_section("preprocessor")]
    if (folder / LABEL_MAPPING).is_file():
        with refusing(LABEL_MAPPING):
            return _order_labels(LABEL_MAPPING, read_object(folder, LABEL_MAPPING, MAX_CONFIG_BYTES)), LABEL_MAPPING
    for section in [*sections, read_section(folder, ARCHITECTURE)]:
        found = _labels_in(section)
        if found is not None:
            return found
    message = (
        f"the revision lacks {LABEL_MAPPING}, and neither {CONFIGURATION} nor {ARCHITECTURE} has label2id or id2label:"
        " nothing says what the model's outputs mean"
    )
    raise ConversionRefused("CONFIG_UNSUPPORTED", message)


def _labels_in(section: ConfigSection, *, is_used: bool = True) -> tuple[tuple[str, ...], str] | None:
    for key in ("label2id", "id2label"):
        if not section.values.get(key):
            continue
        values = section.get(key) if is_used else section.values[key]
        if not isinstance(values, Mapping):
            section.refuse(key, values, "an object")
        location = f"{section.location}{key}"
        if key == "id2label":
            names = {number: str(label) for number, label in values.items() if number.isdecimal()}
            numbers = _invert(location, names)
        with refusing(location.partition(": ")[0]):
            return _order_labels(location, values if key == "label2id" else numbers), location
    return None


def _invert(location: str, names: Mapping[str, str]) -> dict[str, object]:
    """Numbers by label.

    Raises:
        ConversionRefused: two numbers have the same label.
    """
    numbers: dict[str, object] = {}
    for number, label in names.items():
        if label in numbers:
            message = f"{location} has the label {label[:80]!r} twice: {numbers[label]} and {number}"
            raise ConversionRefused("CONFIG_UNSUPPORTED", message)
        numbers[label] = int(number)
    return numbers


def _order_labels(location: str, numbers: Mapping[str, object]) -> tuple[str, ...]:
    """The labels in the order of their numbers.

    Raises:
        ConversionRefused: the numbers are not 0, 1, 2, …, or a label has another form than "O" or "B-prov".
    """
    _refuse_other_forms(location, numbers)
    if not 1 <= len(numbers) <= MAX_LABELS:
        message = f"{location} has {len(numbers)} labels, supported: 1 to {MAX_LABELS}"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)
    by_number: dict[int, list[str]] = {}
    for label, number in numbers.items():
        if type(number) is not int:
            message = f"{location}: the number of {label[:80]!r} is {show_value(number)}, supported: an integer"
            raise ConversionRefused("CONFIG_UNSUPPORTED", message)
        by_number.setdefault(number, []).append(label)
    if by_number.keys() != set(range(len(numbers))):
        raise ConversionRefused("CONFIG_UNSUPPORTED", _describe_numbers(location, by_number))
    labels = tuple(by_number[number][0] for number in range(len(numbers)))
    for label in labels:
        if label != "O" and not (label[:1] in _POSITIONS and label[1:2] == "-" and label[2:].strip()):
            message = f'{location} has the label {label[:80]!r}, supported: "O", and B-, I-, E- or S- with a kind'
            raise ConversionRefused("CONFIG_UNSUPPORTED", message)
    return labels


def _refuse_other_forms(location: str, numbers: Mapping[str, object]) -> None:
    """Refuse mappings that hold what is needed in another form, with the form that is supported."""
    example = 'supported: labels with their numbers, such as {"O": 0, "B-prov": 1}'
    if numbers and all(key.isdecimal() for key in numbers) and all(isinstance(one, str) for one in numbers.values()):
        raise ConversionRefused("CONFIG_UNSUPPORTED", f"{location} has numbers with their labels; {example}")
    nested = next((key for key, value in numbers.items() if isinstance(value, dict | list)), None)
    if nested is not None:
        raise ConversionRefused(
            "CONFIG_UNSUPPORTED", f"{location} has {nested[:80]!r} with a value of its own; {example}"
        )
    if any(_PLACEHOLDER.fullmatch(label) for label in numbers):
        message = f"{location} has placeholders, such as LABEL_0, that libraries write for lack of labels"
        what = "the labels of training" if location == LABEL_MAPPING else LABEL_MAPPING
        raise ConversionRefused("CONFIG_UNSUPPORTED", f"{message}: publish {what}")


def _describe_numbers(location: str, by_number: Mapping[int, list[str]]) -> str:
    """What is wrong with numbers that are not 0, 1, 2, …, each once."""
    count = sum(map(len, by_number.values()))
    rule = f"{location} has {count} labels, whose numbers must be 0 to {count - 1}, each once"
    for number, labels in by_number.items():
        if len(labels) > 1:
            return f"{rule}: {labels[0][:80]!r} and {labels[1][:80]!r} are both {number}"
    lacking = next(number for number in range(count) if number not in by_number)
    return f"{rule}: no label has {lacking}, and {by_number[max(by_number)][0][:80]!r} has {max(by_number)}"


def describe_label_files(folder: Path, labels: tuple[str, ...], labels_from: str) -> tuple[str, ...]:
    """Notes if label_mapping.json is missing, or if config.json names other labels than it.

    The placeholders that libraries write ("LABEL_0") are no other labels.
    """
    if labels_from != LABEL_MAPPING:
        note = f"{LABEL_MAPPING} is missing: the labels are those of {labels_from}"
        names = [path.name for path in sorted(folder.iterdir()) if path.name != LABEL_MAPPING]
        near = difflib.get_close_matches(LABEL_MAPPING, names, 1, cutoff=0.85)
        return (f"{note}; is {near[0]} a misspelling of it?" if near else note,)
    try:
        found = _labels_in(read_section(folder, ARCHITECTURE), is_used=False)
    except ConversionRefused:
        return ()
    if found is None or found[0] == labels:
        return ()
    if sorted(found[0]) == sorted(labels):
        return (NUMBERS_NOTE,)
    return (DISAGREEING_NOTE,)
