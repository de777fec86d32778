"""`hotslot hub doctor`: asks a hub, read only, and prints what an updater would follow, take, ignore and refuse."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from cli.output import BAD, DIM, DOUBTFUL, GOOD, err, print_json, print_text, size, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import AsJson, StateDir, read_settings
from cli.state_folder import state_folder
from common.bundle import BundleBroken, Committed, read_committed
from common.clock import SystemClock
from common.settings import settings_path
from updater.settings import FOLLOW_RELEASES, ModelUpdatesSection, UpdaterSection

if TYPE_CHECKING:
    from updater.doctor import Diagnosis, FoundRevision

EXAMPLE = """Example:  hotslot hub doctor iic/ofa_visual-entailment_snli-ve_large_en

Example:  hotslot hub doctor shapes --follow branch:master

Next:  set `follow` in [updater.models.NAME]; `hotslot updates check` polls the hub."""
COMMIT_DIGITS = 8
_STYLES = {"take": GOOD, "keep": GOOD, "hold": DOUBTFUL, "wait": DOUBTFUL, "refuse": BAD, "ignore": DIM}


def doctor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model in hotslot.toml, or OWNER/NAME on the hub.")],
    *,
    follow: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help='"releases" or "branch:NAME". Default: from hotslot.toml, else releases.',
            show_default=False,
        ),
    ] = "",
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="The hub. Default: from hotslot.toml.", show_default=False)
    ] = "",
    hub: Annotated[
        Path | None, typer.Option("--hub", metavar="DIR", help="A folder hub instead.", show_default=False)
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask a hub, read only, what would be installed from it, and why.

    Lists the revisions and their files as the updater does, and reads small files;
    nothing is downloaded or changed. Run it before hotslot.toml names the model.
    """
    section, name = _choose_section(model, follow, endpoint, hub)
    committed = _find_committed(state_dir, name)
    with err.status(text("asking the hub")):
        place, diagnosis = _examine(section, name, committed)
    if as_json:
        print_json(_to_json(place, section.models[name].follow, diagnosis))
    else:
        _print(place, section.models[name].follow, committed, diagnosis)
    if not diagnosis.is_usable:
        raise typer.Exit(1)


def examine_model(section: UpdaterSection, name: str, state_dir: Path) -> tuple[str, "Diagnosis"]:
    """Ask the hub of a model of the settings, read only; returns its place and what was found.

    Raises:
        CommandFailed: it does not answer.
    """
    return _examine(section, name, _find_committed(state_dir, name))


def _examine(section: UpdaterSection, name: str, committed: Committed | None) -> tuple[str, "Diagnosis"]:
    # The command line starts without an HTTP library.
    from updater.compose import build_rules, open_hub  # noqa: PLC0415
    from updater.core.ports import EffectFailed  # noqa: PLC0415
    from updater.doctor import examine  # noqa: PLC0415

    clock = SystemClock()
    try:
        hub = open_hub(section, name, clock)
        found = examine(hub, build_rules(section, name), committed, clock)
    except EffectFailed as error:
        raise CommandFailed(f"{error.failure.message} ({error.failure.reason})") from error
    return f"{hub.place.model}  {hub.place.endpoint or section.models[name].hub_folder}", found


def _choose_section(model: str, follow: str, endpoint: str, hub: Path | None) -> tuple[UpdaterSection, str]:
    """The updater's settings with one model: that of hotslot.toml, or one that exists only now."""
    section = read_settings().updater if settings_path().is_file() else UpdaterSection()
    known = section.models.get(model)
    name = model.rpartition("/")[2]
    if known is None and "/" not in model and hub is None:
        names = ", ".join(section.models) or "none"
        raise WronglyUsed(f"[updater.models] has no {model} (it has {names}); name a model as OWNER/NAME")
    row = known.model_dump() if known is not None else {}
    if known is None or hub is not None:
        row |= {"hub_folder": hub, "hub_model": "" if hub is not None else model}
    row["follow"] = follow or row.get("follow", FOLLOW_RELEASES)
    try:
        chosen = ModelUpdatesSection.model_validate(row)
        changes = {"models": {name: chosen}, **({"hub_endpoint": endpoint} if endpoint else {})}
        return UpdaterSection.model_validate({**section.model_dump(), **changes}), name
    except ValidationError as error:
        told = error.errors()[0]["msg"]
        raise WronglyUsed(f"MODEL, --follow, --endpoint or --hub is not allowed: {told}") from error


def _find_committed(state_dir: Path | None, name: str) -> Committed | None:
    try:
        return read_committed(state_folder(state_dir)).get(name)
    except (BundleBroken, OSError):
        return None


def _print(place: str, follow: str, committed: Committed | None, found: "Diagnosis") -> None:
    print_text((f"{'hub':<9}", DIM), place)
    print_text((f"{'follows':<9}", DIM), follow)
    if committed is not None:
        print_text((f"{'committed':<9}", DIM), f"{committed.revision} {committed.source_digest[7:19]}")
    print_text((f"{'names':<9}", DIM), str(found.names))
    width = max((len(row.name) for row in found.revisions), default=0)
    for row in found.revisions:
        print_text((f"{row.finding.value:<9}", _STYLES[row.finding.value]), f"{row.name:<{width}}  {_describe(row)}")
    if found.more_ignored:
        print_text(("ignore   ", DIM), f"{found.more_ignored} more")
    for note in found.notes:
        print_text((f"{'note':<9}", DOUBTFUL), note)


def _describe(row: "FoundRevision") -> str:
    """A revision's files and commit, and why it is not simply installed."""
    what = f"{row.files} files, {size(row.size)}, engine {row.engine}" if row.engine else ""
    commit = f"commit {row.commit_id[:COMMIT_DIGITS]}" if row.commit_id else ""
    return "; ".join(part for part in (what, commit, row.why) if part)


def _to_json(place: str, follow: str, found: "Diagnosis") -> dict[str, object]:
    rows = [asdict(row) for row in found.revisions]
    return {
        "hub": place,
        "follow": follow,
        "names": found.names,
        "revisions": rows,
        "more_ignored": found.more_ignored,
        "notes": list(found.notes),
    }
