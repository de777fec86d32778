"""Renders update states, the history and single updates for the terminal."""

from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from cli.bundles import format_checks, format_origin
from cli.output import ABSENT, BAD, DIM, DOUBTFUL, GOOD, enum_word, seconds, short, size, text
from common.paths import SAMPLES_FOLDER
from hotslot.updates.v1 import updates_pb2 as pb

BAR_CELLS = 30
ALL_PERCENT = 100
_OUTCOME_STYLES = {
    pb.UPDATE_OUTCOME_COMMITTED: GOOD,
    pb.UPDATE_OUTCOME_REFUSED: BAD,
    pb.UPDATE_OUTCOME_ROLLED_BACK: BAD,
    pb.UPDATE_OUTCOME_ABANDONED: DOUBTFUL,
}


def show_status(response: pb.GetStatusResponse) -> RenderableType:
    """The update state of all models."""
    return Group(*(part for state in response.models for part in (*_model(state), text(""))))


def show_history(response: pb.ListHistoryResponse) -> RenderableType:
    """A table of past updates."""
    if not response.updates and not response.alarms:
        return text(("no updates yet", DIM))
    alarms = [text((f"{_when(one.at)}  {one.model}  {one.message}", BAD)) for one in response.alarms]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("began", "id", "model", "revision", "outcome", "took", "why"):
        table.add_column(heading, overflow="fold")
    for one in response.updates:
        outcome = (_outcome(one), _OUTCOME_STYLES.get(one.outcome, ""))
        cells = (_when(one.started_at), one.update_id, one.model, one.revision, outcome, _took(one), one.reason.lower())
        table.add_row(*(text(cell) for cell in cells))
    return Group(table, *alarms) if response.updates else Group(*alarms)


def show_update(response: pb.GetUpdateResponse) -> RenderableType:
    """One update: its outcome, reason, advice, events and measurements."""
    one = response.update
    head = text(
        (f"{one.model} {one.revision}", "bold"), "  ", (_outcome(one), _OUTCOME_STYLES.get(one.outcome, DOUBTFUL))
    )
    parts: list[RenderableType] = [head]
    if one.message:
        parts.append(text(one.message))
    if response.advice:
        parts.append(text(("what to do: ", DOUBTFUL), response.advice))
    parts += [text(""), _facts(response)]
    parts += [text(""), *(text(("note: ", DOUBTFUL), note) for note in response.notes)] if response.notes else []
    parts += [text(""), _events(response)] if response.events else []
    parts += [text(""), _measurements(response)] if response.measurements else []
    parts += [text(""), _changes(response)] if response.changes else []
    parts += [text(""), _differing(response)] if response.differing else []
    parts += [text(""), _kept(response)] if response.kept else []
    return Group(*parts)


def _model(state: pb.ModelUpdates) -> Iterator[RenderableType]:
    stage = enum_word(pb.UpdateStage.DESCRIPTOR, state.stage)
    style = {"idle": GOOD, "held": BAD}.get(stage, DOUBTFUL)
    share = f" {state.stage_fraction:.0%}" if 0 < state.stage_fraction < 1 else ""
    share += f", {state.percent:g} % of the requests" if 0 < state.percent < ALL_PERCENT else ""
    paused = ("  paused", BAD) if state.paused else ""
    yield text((state.model, "bold"), "  ", (stage.replace("_", " ") + share, style), paused)
    table = Table.grid(padding=(0, 2, 0, 0))
    committed = f"{state.committed_revision} {short(state.committed_source_digest)}" if state.committed_revision else ""
    table.add_row(text(("committed", DIM)), text(committed or ABSENT))
    if state.HasField("committed_provenance"):
        _add_provenance(table, state.committed_provenance)
    if state.HasField("current"):
        one = state.current
        digest = f" {short(one.source_digest)}" if one.source_digest else ""
        table.add_row(text(("update", DIM)), text(f"{one.revision}{digest}  {one.update_id}"))
        if one.message:
            table.add_row(text(("why", DIM)), text(one.message))
    if state.expected_bytes:
        table.add_row(text(("downloaded", DIM)), _show_download(state))
    checked = _when(state.last_checked_at) if state.HasField("last_checked_at") else "never"
    table.add_row(text(("hub answered", DIM)), text(checked))
    if state.HasField("listing_changed_at"):
        newest = f", newest release since {_when(state.newest_listed_at)}" if state.HasField("newest_listed_at") else ""
        table.add_row(text(("listing changed", DIM)), text(_when(state.listing_changed_at) + newest))
    if state.left_out:
        names = ", ".join(state.left_out_names) + (", …" if state.left_out > len(state.left_out_names) else "")
        table.add_row(text(("left out", DIM)), text(f"{state.left_out} of {state.listed_names} names: {names}"))
    _add_troubles(table, state)
    for entry in state.quarantine:
        shown = f"{short(entry.source_digest)} {entry.revision}, {entry.reason.lower()}, since {_when(entry.since)}"
        table.add_row(text(("quarantine", DIM)), text(shown))
    yield table
    if state.fault:
        yield text((state.fault, BAD))
    if state.advice and state.advice != state.fault:
        yield text(("what to do: ", DOUBTFUL), state.advice)


def _show_download(state: pb.ModelUpdates) -> RenderableType:
    """A progress bar, and the downloaded bytes."""
    row = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(total=state.expected_bytes, completed=state.received_bytes, width=BAR_CELLS)
    row.add_row(bar, text(f"{size(state.received_bytes)} of {size(state.expected_bytes)}"))
    return row


def _add_troubles(table: Table, state: pb.ModelUpdates) -> None:
    """Add a CPU fallback or bridge, versions that were published again, and open breakers."""
    if state.HasField("cpu_fallback"):
        away = state.cpu_fallback
        shown = f"to {away.fallback_device} since {_when(away.since)}: {away.reason} on {away.device}"
        table.add_row(text(("CPU fallback", DIM)), text((shown, BAD)))
    if state.bridge_device:
        table.add_row(text(("CPU bridge", DIM)), text((f"the serving model leaves {state.bridge_device}", DOUBTFUL)))
    for again in state.republished:
        shown = f"{again.revision} {short(again.known_digest)} is {short(again.listed_digest)} on the hub"
        table.add_row(text(("published again", DIM)), text((f"{shown} since {_when(again.since)}", BAD)))
    for breaker in state.breakers:
        if breaker.state != "CLOSED":
            table.add_row(text((f"breaker {breaker.name}", DIM)), text((_breaker(breaker), BAD)))
            table.add_row(text(""), text((breaker.reason, DIM)))


def _breaker(breaker: pb.Breaker) -> str:
    left = breaker.open_left.ToTimedelta().total_seconds()
    shown = f"{breaker.state.lower().replace('_', ' ')}, {breaker.failures} failures, "
    if breaker.state == "HALF_OPEN":
        return shown + f"one attempt in progress, for at most {seconds(left)}"
    return shown + (f"next attempt in {seconds(left)}" if left > 0 else "next attempt as soon as the updater is idle")


def _add_provenance(table: Table, row: pb.Provenance) -> None:
    """Add the origin of a bundle, and the checks that it passed."""
    came = format_origin(row.hub_kind, row.endpoint, row.hub_model, row.revision, _when(row.fetched_at))
    table.add_row(text(("from", DIM)), text(came))
    when = f"{_when(row.verified_at)}: " if row.HasField("verified_at") else ""
    table.add_row(text(("checked", DIM)), text(when + format_checks(tuple(row.checked))))


def _facts(response: pb.GetUpdateResponse) -> RenderableType:
    one = response.update
    table = Table.grid(padding=(0, 2, 0, 0))
    stage = enum_word(pb.UpdateStage.DESCRIPTOR, one.stage)
    rows = {
        "id": one.update_id,
        "stage": stage if not one.outcome else "",
        "reason": one.reason,
        "source": one.source_digest,
        "commit": one.commit_id,
        "bundle": one.bundle_digest,
        "began": _when(one.started_at),
        "took": _took(one),
    }
    for key, value in rows.items():
        if value:
            table.add_row(text((key, DIM)), text(value))
    if response.HasField("provenance"):
        _add_provenance(table, response.provenance)
    return table


def _events(response: pb.GetUpdateResponse) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("when", "stage", "what", ""):
        table.add_column(heading, overflow="fold")
    for event in response.events:
        stage = enum_word(pb.UpdateStage.DESCRIPTOR, event.stage).replace("_", " ")
        table.add_row(text(_when(event.at)), text(stage), text(event.name.replace("_", " ")), text(event.message))
    return table


def _measurements(response: pb.GetUpdateResponse) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("measured", "candidate", "active", "limit", ""):
        table.add_column(heading, justify="right" if heading in ("candidate", "active", "limit") else "left")
    for one in response.measurements:
        verdict = ("within", GOOD) if one.passed else ("beyond", BAD)
        numbers = (f"{value:.4g}" for value in (one.candidate, one.active, one.threshold))
        table.add_row(text(one.name.replace("_", " ")), *map(text, numbers), text(verdict))
    return table


def _changes(response: pb.GetUpdateResponse) -> RenderableType:
    """Changed answers by direction: on the golden set, and on the requests of callers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("changed answers", "callers", "", "golden set", "limit", ""):
        table.add_column(heading, justify="left" if heading in ("changed answers", "") else "right")
    for one in response.changes:
        verdict = ("within", GOOD) if one.passed else ("beyond", BAD)
        share = f"{one.count / one.compared:.1%}" if one.compared else ""
        counts = (f"{one.count} of {one.compared}", share, f"{one.expected_count} of {one.questions}")
        table.add_row(text(one.name), *map(text, counts), text(f"{one.bound:.1%}"), text(verdict))
    return table


def _differing(response: pb.GetUpdateResponse) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("item", "text", "expected", "active", "candidate"):
        table.add_column(heading, overflow="fold")
    for one in response.differing:
        cells = (one.item, one.text, one.expected or ABSENT, one.active, one.candidate)
        table.add_row(*(text(cell) for cell in cells))
    return table


def _kept(response: pb.GetUpdateResponse) -> RenderableType:
    """Requests of callers with the answers that differ; their files lie in the state folder."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("kept request", "text", "active", "candidate"):
        table.add_column(heading, overflow="fold")
    for one in response.kept:
        for answer in one.answers:
            if answer.active != answer.candidate:
                table.add_row(*map(text, (one.name, answer.text, answer.active, answer.candidate)))
    return Group(
        table, text((f"texts and pictures: the state folder's {SAMPLES_FOLDER}/{response.update.model}/", DIM))
    )


def _outcome(one: pb.UpdateSummary) -> str:
    if not one.outcome:
        return enum_word(pb.UpdateStage.DESCRIPTOR, one.stage).replace("_", " ")
    return enum_word(pb.UpdateOutcome.DESCRIPTOR, one.outcome).replace("_", " ")


def _took(one: pb.UpdateSummary) -> str:
    if not one.HasField("ended_at"):
        return ""
    return seconds((one.ended_at.ToDatetime() - one.started_at.ToDatetime()).total_seconds())


def _when(at: Timestamp) -> str:
    """UTC, to the second: the audit trail is read in many time zones."""
    return at.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ") if at.seconds else ABSENT
