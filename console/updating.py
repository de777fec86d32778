"""The pages about updates: their history, the evidence of each, and the commands of operators."""

import contextlib
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from console.measures import group_measures
from console.page import FormRefused, console_of, read_form, redirect, render, session_of, text_of
from console.trying import find_kind
from console.upstream import COMMAND_SECONDS, HUB_SECONDS, CallFailed, list_golden_items
from console.views import build_label_matrix, list_stages
from hotslot.updates.v1 import updates_pb2 as pb

PAGE = 30
DIFFERING_PAGE = 24
DIFFERENCES = {
    "wrong": pb.DIFFERENCE_KIND_NOW_WRONG,
    "right": pb.DIFFERENCE_KIND_NOW_RIGHT,
    "changed": pb.DIFFERENCE_KIND_CHANGED,
    "still": pb.DIFFERENCE_KIND_STILL_WRONG,
}
_MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Command:
    """A command of an operator."""

    method: str  # of UpdatesService
    request: type[Any]
    target: str = ""  # field of the request that names the revision; empty: none
    asks_name: bool = False  # whether the operator types the revision's name
    seconds: float = COMMAND_SECONDS
    what: str = ""  # the sentence above the form; English, translated by the template


COMMANDS: dict[str, Command] = {
    "approve": Command(
        "Approve",
        pb.ApproveRequest,
        "source_digest",
        asks_name=True,
        what="The held update goes on, as if it had passed.",
    ),
    "rollback": Command(
        "Rollback",
        pb.RollbackRequest,
        "revision",
        asks_name=True,
        what="The previous revision answers again, this one goes into quarantine, and updates pause.",
    ),
    "unquarantine": Command(
        "Unquarantine",
        pb.UnquarantineRequest,
        "source_digest",
        asks_name=True,
        what="The revision may be installed again.",
    ),
    "step": Command(
        "Step", pb.StepRequest, what="The rollout goes on to its next step now: more callers, or the trial."
    ),
    "promote": Command(
        "Promote", pb.PromoteRequest, what="The canary gets all requests now; its last window still passes."
    ),
    "pause": Command("Pause", pb.PauseRequest, what="No update starts until updates are resumed."),
    "resume": Command("Resume", pb.ResumeRequest, what="Updates start again, and a held one is tried again."),
    "check": Command("CheckNow", pb.CheckNowRequest, seconds=HUB_SECONDS, what="The hub is asked for revisions now."),
}


async def history(request: Request) -> Response:
    """The past updates, newest first."""
    upstream, model = console_of(request).upstream, request.query_params.get("model", "")
    asked = pb.ListHistoryRequest(model=model, page_size=PAGE, page_token=request.query_params.get("from", ""))
    found: pb.ListHistoryResponse = await upstream.ask_updater("ListHistory", asked)
    followed = await upstream.updates_status()
    return render(request, "updates.html", found=found, followed=followed, model=model)


async def evidence(request: Request) -> Response:
    """One update: what was checked, measured and different, and what to do."""
    upstream, update_id = console_of(request).upstream, request.path_params["update_id"]
    show = request.query_params.get("show", "")
    found: pb.GetUpdateResponse = await upstream.ask_updater("GetUpdate", pb.GetUpdateRequest(update_id=update_id))
    wanted = pb.ListDifferingItemsRequest(
        update_id=update_id,
        kind=DIFFERENCES.get(show, pb.DIFFERENCE_KIND_UNSPECIFIED),
        page_size=DIFFERING_PAGE,
        page_token=request.query_params.get("from", ""),
    )
    page: pb.ListDifferingItemsResponse = await upstream.ask_updater("ListDifferingItems", wanted)
    followed = {one.model: one for one in await upstream.updates_status()}
    state = followed.get(found.update.model)
    counts = {row.kind: row.count for row in page.counts}
    return render(
        request,
        "update.html",
        found=found,
        stages=list_stages(found),
        measures=group_measures(found.measurements),
        matrix=build_label_matrix(found.label_pairs),
        page=page,
        counts={name: counts.get(kind, 0) for name, kind in DIFFERENCES.items()},
        kinds={kind: name for name, kind in DIFFERENCES.items()},
        show=show if show in DIFFERENCES else "",
        actions=_list_actions(found, state),
        pictures=await _list_pictures(request, found.update.model) if page.items else set(),
    )


async def kept_picture(request: Request) -> Response:
    """The picture of a call that got another answer. Its type is that of its content."""
    asked = pb.GetKeptPictureRequest(
        update_id=request.path_params["update_id"], name=request.query_params.get("name", "")
    )
    found: pb.GetKeptPictureResponse = await console_of(request).upstream.ask_updater("GetKeptPicture", asked)
    kind = find_kind(found.content) or "application/octet-stream"
    return Response(found.content, media_type=kind, headers={"cache-control": "no-store"})


def _list_actions(found: pb.GetUpdateResponse, state: pb.ModelUpdates | None) -> list[str]:
    """The commands that make sense for an update now."""
    update = found.update
    if state is None:
        return []
    is_current = state.HasField("current") and state.current.update_id == update.update_id
    actions = []
    if is_current and update.stage == pb.UPDATE_STAGE_HELD:
        actions.append("approve")
    serves = update.outcome == pb.UPDATE_OUTCOME_COMMITTED and state.committed_source_digest == update.source_digest
    if serves or (is_current and update.stage in (pb.UPDATE_STAGE_ACTIVATING, pb.UPDATE_STAGE_OBSERVING)):
        actions.append("rollback")
    if any(row.source_digest == update.source_digest for row in state.quarantine):
        actions.append("unquarantine")
    return actions


async def _list_pictures(request: Request, model: str) -> set[str]:
    """The items of today's golden set that have a picture."""
    names: set[str] = set()
    with contextlib.suppress(CallFailed):
        async for item in list_golden_items(console_of(request).upstream, model):
            if item.has_picture:
                names.add(item.item)
    return names


async def confirm(request: Request) -> Response:
    """Ask for a reason, and for the revision's name."""
    command = _find_command(request)
    require_operator(request)
    asked = request.query_params
    return render(
        request,
        "act.html",
        name=request.path_params["command"],
        command=command,
        model=asked.get("model", ""),
        target=asked.get("target", ""),
        revision=asked.get("revision", ""),
        problem="",
        code="",
        reason="",
    )


async def act(request: Request) -> Response:
    """Send a command; then show the updates."""
    command = _find_command(request)
    form = await read_form(request)
    operator = require_operator(request)
    model, target, revision = (text_of(form, name) for name in ("model", "target", "revision"))
    reason = " ".join(text_of(form, "reason").split())[:_MAX_REASON_CHARS]
    problem = code = ""
    if not reason and command.method != "CheckNow":
        problem = "A reason is needed: the history keeps it."
    elif command.asks_name and text_of(form, "confirm").strip() != revision:
        problem = "What you typed is not the revision's name."
    if not problem:
        wanted = command.request(model=model)
        if command.target:
            setattr(wanted, command.target, target)
        if hasattr(wanted, "operator"):
            wanted.operator.name, wanted.operator.reason = operator, reason
        try:
            await console_of(request).upstream.ask_updater(command.method, wanted, command.seconds)
            return redirect(request, f"/updates?model={model}" if model else "/updates")
        except CallFailed as error:
            problem, code = str(error), error.reason
    values = {
        "model": model,
        "target": target,
        "revision": revision,
        "problem": problem,
        "code": code,
        "reason": reason,
    }
    return render(request, "act.html", status=400, name=request.path_params["command"], command=command, **values)


def _find_command(request: Request) -> Command:
    command = COMMANDS.get(request.path_params["command"])
    if command is None:
        raise FormRefused("there is no such command", 404)
    return command


def require_operator(request: Request) -> str:
    """The name of who acts now: ask before each act, since a session may end while a form arrives.

    Raises:
        FormRefused: nobody is logged in, the session has ended, or this console only shows.
    """
    console, session = console_of(request), session_of(request)
    if not console.may_operate:
        raise FormRefused("this console only shows; start it with --operate to act", 403)
    if not console.can_act(session):
        raise FormRefused("log in first: the history keeps who acted", 403)
    return session.operator
