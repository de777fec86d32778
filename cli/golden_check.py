"""The check of an import: the new bundle answers the model's golden set before it is committed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.output import BAD, GOOD, print_text
from cli.problems import CommandFailed
from cli.settings import read_settings
from common.bundle import Bundle, Committed, bundle_folder
from common.golden_set import GoldenBroken, read_folder
from common.judging import Answers, Thresholds, count_right, find_objection, run_judge
from common.settings import settings_path
from common.source import ConversionRefused

TIMEOUT_SECONDS = 1800.0  # of one bundle's answers
Judge = Callable[[Path, Path, float], Answers]


@dataclass(frozen=True, slots=True)
class GoldenChoice:
    """The golden set that the settings name for a model."""

    folder: Path
    thresholds: Thresholds


def golden_of(model: str) -> GoldenChoice | None:
    """The golden set of a model by the settings, with the gate's thresholds; None if they name none."""
    section = read_settings().updater.models.get(model) if settings_path().is_file() else None
    if section is None or section.golden is None:
        return None
    gate = section.gate
    thresholds = Thresholds(section.golden_min_accuracy, gate.max_accuracy_loss, gate.min_agreement)
    return GoldenChoice(section.golden, thresholds)


def golden_check(
    state: Path, golden: GoldenChoice | None, *, force: bool, judge: Judge = run_judge
) -> Callable[[Bundle, Committed | None], None]:
    """The function that stops an import if the golden set speaks against the bundle.

    Args:
        state: the state folder.
        golden: the set; without one nothing is checked.
        force: print the numbers, and never stop.
        judge: answers a set with a bundle.

    Returns:
        A function that raises CommandFailed.
    """

    def check(bundle: Bundle, committed: Committed | None) -> None:
        if golden is None:
            return
        objection = _judge(state, golden, bundle, committed, judge)
        if not objection:
            return
        if not force:
            message = f"{objection}; nothing is committed, `hotslot bundle import --force` imports it anyway"
            raise CommandFailed(f"{bundle.revision} was not imported: {message}")
        print_text((f"{objection}; it is imported with --force", BAD))

    return check


def _judge(state: Path, golden: GoldenChoice, bundle: Bundle, committed: Committed | None, judge: Judge) -> str:
    """Answer the set, print the accuracy, and return what speaks against the bundle."""
    try:
        found = read_folder(golden.folder, bundle.task).distinct
        ours = judge(bundle_folder(state, bundle.bundle_digest), golden.folder, TIMEOUT_SECONDS)
        before = None
        if committed is not None:
            before = judge(bundle_folder(state, committed.bundle_digest), golden.folder, TIMEOUT_SECONDS)
    except GoldenBroken as error:
        return f"the golden set {golden.folder} cannot be used: {error}"
    except ConversionRefused as error:
        return f"the golden set was not answered: {error}"
    objection = find_objection(found, ours, before, golden.thresholds)
    count = count_right(found, ours)
    said = f"{count.right} of {count.expected} expected answers right ({count.accuracy:.1%})"
    beside = (
        "" if committed is None or before is None else f"; {committed.revision}: {count_right(found, before).right}"
    )
    unread = f"; {count.unread} items were not read" if count.unread else ""
    print_text(f"golden set: {bundle.revision} has ", (said, BAD if objection else GOOD), beside, unread)
    return objection
