"""`hotslot updates …`: watch and control updates, through the updater's own socket."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live

from cli.clients import connection, updates_endpoint
from cli.output import GOOD, out, plain, print_json, print_text
from cli.settings import AsJson, StateDir
from cli.updates_view import show_history, show_status, show_update
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub

TIMEOUT_SECONDS = 30.0
HUB_SECONDS = 120.0  # for commands that wait for the hub
WATCH_SECONDS = 0.5

app = typer.Typer(no_args_is_help=True)
breaker_app = typer.Typer(no_args_is_help=True)
app.add_typer(
    breaker_app,
    name="breaker",
    help="Close circuit breakers.",
    epilog="Example:  hotslot updates breaker reset activation\n\nNext:  `hotslot updates status` shows open breakers.",
)

Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Required if several models are served.", show_default=False),
]
OneModel = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="Only this model. Default: all.", show_default=False)
]
Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help="Source digest or commit id, or at least its first 4 digits.")
]


@app.command(
    epilog="Example:  hotslot updates status\n\nNext:  `hotslot updates show ID` explains the update in progress."
)
def status(*, model: OneModel = "", state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show the update state of each model, with advice if something must be done.

    For each model: the stage of the update in progress, the committed revision
    and its origin, open circuit breakers, and revisions in quarantine.
    """
    with _updater(state_dir) as stub:
        response = stub.GetStatus(pb.GetStatusRequest(model=model), timeout=TIMEOUT_SECONDS)
    if as_json:
        print_json(plain(response))
    else:
        out.print(show_status(response))


@app.command(
    epilog="Example:  hotslot updates watch\n\nNext:  `hotslot updates history` lists the updates that have ended."
)
def watch(*, model: OneModel = "", state_dir: StateDir = None) -> None:
    """Show the same as `status` and refresh it twice a second, until Ctrl-C."""
    never = threading.Event()
    with (
        _updater(state_dir) as stub,
        Live(console=out, auto_refresh=False) as live,
        contextlib.suppress(KeyboardInterrupt),
    ):
        while True:
            response = stub.GetStatus(pb.GetStatusRequest(model=model), timeout=TIMEOUT_SECONDS)
            live.update(show_status(response), refresh=True)
            never.wait(WATCH_SECONDS)


@app.command(
    epilog="Example:  hotslot updates history --limit 5\n\nNext:  `hotslot updates show ID` explains one of them."
)
def history(
    *,
    model: OneModel = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="Largest number of updates to show.")] = 20,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """List past updates, newest first."""
    with _updater(state_dir) as stub:
        response = stub.ListHistory(pb.ListHistoryRequest(model=model, page_size=limit), timeout=TIMEOUT_SECONDS)
    if as_json:
        print_json(plain(response))
    else:
        out.print(show_history(response))


@app.command(
    epilog="Example:  hotslot updates show 20260821-101500-3f2a91\n\n"
    "Next:  follow the line `what to do`, for example `hotslot updates approve DIGEST`."
)
def show(
    update_id: Annotated[str, typer.Argument(metavar="ID", help="Id of an update; `history` lists them.")],
    *,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one update: what happened, when and why, and what to do.

    Includes the measurements of the gate and of the trial, and the first golden
    items that the candidate and the active model answered differently.
    """
    with _updater(state_dir) as stub:
        response = stub.GetUpdate(pb.GetUpdateRequest(update_id=update_id), timeout=TIMEOUT_SECONDS)
    if as_json:
        print_json(plain(response))
    else:
        out.print(show_update(response))


@app.command(epilog="Example:  hotslot updates check\n\nNext:  `hotslot updates watch` follows an update that starts.")
def check(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Poll the hub now instead of at the next poll.

    Prints the newest revision that the policy allows, or why none is installed.
    """
    with _updater(state_dir) as stub:
        response = stub.CheckNow(pb.CheckNowRequest(model=model), timeout=HUB_SECONDS)
    print_text(response.message or "the hub was polled")


@app.command(epilog="Example:  hotslot updates update v1.2.0\n\nNext:  `hotslot updates watch` follows it.")
def update(
    revision: Annotated[
        str, typer.Argument(metavar="REV", help="Name on the hub, digest or commit id, or at least its first 4 digits.")
    ],
    *,
    model: Model = "",
    state_dir: StateDir = None,
) -> None:
    """Start an update to one revision.

    Works also while updates are paused, in mode `manual`, and for a revision that
    is not followed, such as a branch. It is verified and gated as any other.
    Contents are compared, not names: one that is committed or in quarantine is
    refused, and so is a version that is older than what was committed.
    """
    with _updater(state_dir) as stub:
        response = stub.Update(pb.UpdateRequest(model=model, revision=revision), timeout=HUB_SECONDS)
    _print_started(response.update)


@app.command(
    epilog="Example:  hotslot updates rollback\n\nNext:  `hotslot updates resume` once a better revision is published."
)
def rollback(
    revision: Annotated[
        str,
        typer.Argument(
            metavar="[REV]",
            help="Revision that the rollback must act on: the update's while one is in progress and not HELD, "
            "else the committed one; refused if it is another.",
            show_default=False,
        ),
    ] = "",
    *,
    model: Model = "",
    state_dir: StateDir = None,
) -> None:
    """Go back to the previous committed revision, and pause updates.

    The source digest of the active revision is quarantined; on trial, that is the
    candidate. An update whose candidate does not serve yet is only abandoned.
    """
    with _updater(state_dir) as stub:
        response = stub.Rollback(pb.RollbackRequest(model=model, revision=revision), timeout=TIMEOUT_SECONDS)
    print_text((response.update.revision, "bold"), " is being rolled back, and updates are paused; see")
    print_text(f"    hotslot updates show {response.update.update_id}")


@app.command(
    epilog='Example:  hotslot updates pause --reason "release freeze"\n\n'
    "Next:  `hotslot updates resume` continues updates."
)
def pause(
    *,
    model: Model = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Recorded in the history.", show_default=False)] = "",
    state_dir: StateDir = None,
) -> None:
    """Pause updates until `resume`. An update in progress is stopped or rolled back."""
    with _updater(state_dir) as stub:
        response = stub.Pause(pb.PauseRequest(model=model, reason=reason), timeout=TIMEOUT_SECONDS)
    print_text((response.state.model, "bold"), ": updates are paused until `hotslot updates resume`")


@app.command(epilog="Example:  hotslot updates resume\n\nNext:  `hotslot updates status` shows what is installed next.")
def resume(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Continue updates after `pause` or `rollback`, and retry an update that is HELD.

    An update that is HELD ends as abandoned, and the hub is polled at once: what
    policy allows is gated and tried from the beginning, the same revision again
    if there is no newer one. One that is HELD for disk space goes on where it was.
    """
    with _updater(state_dir) as stub:
        response = stub.Resume(pb.ResumeRequest(model=model), timeout=TIMEOUT_SECONDS)
    print_text((response.state.model, "bold"), ": updates continue")


@app.command(epilog="Example:  hotslot updates step\n\nNext:  `hotslot updates watch` shows its next share.")
def step(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Continue the rollout in progress at once.

    A candidate that answers copies of requests begins its trial; a canary gets
    its next share of the requests.
    """
    with _updater(state_dir) as stub:
        response = stub.Step(pb.StepRequest(model=model), timeout=TIMEOUT_SECONDS)
    _print_percent(response.state)


@app.command(epilog="Example:  hotslot updates promote\n\nNext:  `hotslot updates watch` follows it to its commit.")
def promote(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Give the revision that is rolled out all requests at once.

    It is still on trial: it is committed after one more window, or rolled back.
    """
    with _updater(state_dir) as stub:
        response = stub.Promote(pb.PromoteRequest(model=model), timeout=TIMEOUT_SECONDS)
    _print_percent(response.state)


@app.command(epilog="Example:  hotslot updates approve 3f2a91bc\n\nNext:  `hotslot updates watch` follows it.")
def approve(digest: Digest, *, model: Model = "", state_dir: StateDir = None) -> None:
    """Approve the update that is HELD, by its content.

    `hotslot updates show ID` shows its reason and the evidence. Possible if the
    reason is APPROVAL, AGREEMENT, NOISE, SLOWER, CHANGED_ANSWERS, LABELS,
    NO_GOLDEN, GOLDEN_UNUSABLE, SEEN_BEFORE or FIRST_CONTACT; never if
    verification failed.
    """
    with _updater(state_dir) as stub:
        request = pb.ApproveRequest(model=model, source_digest=digest)
        response = stub.Approve(request, timeout=TIMEOUT_SECONDS)
    _print_started(response.update)


@app.command(
    epilog="Example:  hotslot updates unquarantine 3f2a91bc\n\n"
    "Next:  `hotslot updates check` polls the hub for it at once."
)
def unquarantine(digest: Digest, *, model: Model = "", state_dir: StateDir = None) -> None:
    """Remove a content from quarantine, so that it may be installed again."""
    with _updater(state_dir) as stub:
        request = pb.UnquarantineRequest(model=model, source_digest=digest)
        stub.Unquarantine(request, timeout=TIMEOUT_SECONDS)
    print_text((f"{digest[:19]} ", GOOD), "is no longer in quarantine")


@breaker_app.command(
    epilog="Example:  hotslot updates breaker reset activation\n\n"
    "Next:  `hotslot updates status` shows the next attempt."
)
def reset(
    breaker: Annotated[str, typer.Argument(metavar="NAME", help="hub, activation or device.")],
    *,
    model: Model = "",
    state_dir: StateDir = None,
) -> None:
    """Close a circuit breaker, so that the next attempt happens at once.

    hub: polls of the hub; activation: updates, after too many failed;
    device: the return from the CPU to a device that ran out of memory.
    """
    with _updater(state_dir) as stub:
        request = pb.ResetBreakerRequest(model=model, breaker=breaker)
        response = stub.ResetBreaker(request, timeout=TIMEOUT_SECONDS)
    print_text(f"{response.breaker.name} is {response.breaker.state.lower()}")


@contextlib.contextmanager
def _updater(state_dir: StateDir) -> Iterator[UpdatesServiceStub]:
    with connection(updates_endpoint(state_dir), TIMEOUT_SECONDS) as channel:
        yield UpdatesServiceStub(channel)


def _print_percent(state: pb.ModelUpdates) -> None:
    share = f"gets {state.percent:g} % of the requests" if state.percent else "begins its trial"
    print_text((state.current.revision, "bold"), f" {share}; follow it with")
    print_text(f"    hotslot updates show {state.current.update_id}")


def _print_started(update_: pb.UpdateSummary) -> None:
    name = (update_.revision or "the update", "bold")
    if update_.reason:
        print_text(name, f" needs an approval as update {update_.update_id}: {update_.message}; see")
    else:
        print_text(name, f" is being installed as update {update_.update_id}; follow it with")
    print_text(f"    hotslot updates show {update_.update_id}")
