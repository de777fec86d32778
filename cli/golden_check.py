"""The check of an import: the new bundle answers the model's golden set before it is committed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.output import BAD, GOOD, print_text
from cli.problems import CommandFailed
from cli.settings import read_settings
from common.bundle import Bundle, Committed, bundle_folder
from common.golden_set import GoldenBroken, read_folder
from common.judging import Answers, count_right, find_objection, run_judge
from common.settings import settings_path
from common.source import ConversionRefused

TIMEOUT_SECONDS = 1800.0  # of one bundle's answers
Judge = Callable[[Path, Path, float], Answers]


@dataclass(frozen=True, slots=True)
class GoldenChoice:
    """The golden set that the settings name for a model."""

    folder: Path | None
    min_accuracy: float = 0.0


def golden_of(model: str) -> GoldenChoice:
    """The golden set of a model by the settings; none without settings."""
    if not settings_path().is_file():
        return GoldenChoice(None)
    section = read_settings().updater.models.get(model)
    return GoldenChoice(None) if section is None else GoldenChoice(section.golden, section.golden_min_accuracy)


def golden_check(
    state: Path, golden: GoldenChoice, *, force: bool, judge: Judge = run_judge
) -> Callable[[Bundle, Committed | None], None]:
    """The function that stops an import if the golden set speaks against the bundle.

    Args:
        state: the state folder.
        golden: the set; without a folder nothing is checked.
        force: print the numbers, and never stop.
        judge: answers a set with a bundle.

    Returns:
        A function that raises CommandFailed.
    """

    def check(bundle: Bundle, committed: Committed | None) -> None:
        if golden.folder is None:
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
    if golden.folder is None:
        return ""
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
    objection = find_objection(found, ours, before, golden.min_accuracy)
    count = count_right(found, ours)
    said = f"{count.right} of {count.expected} expected answers right ({count.accuracy:.1%})"
    beside = (
        "" if committed is None or before is None else f"; {committed.revision}: {count_right(found, before).right}"
    )
    unread = f"; {count.unread} items were not read" if count.unread else ""
    print_text(f"golden set: {bundle.revision} has ", (said, BAD if objection else GOOD), beside, unread)
    return objection
