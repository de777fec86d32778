"""`hotslot updates …`: an operator's hand on the updater, over its own socket."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live

from cli.clients import connection, updates_address
from cli.output import GOOD, out, plain, print_json, print_text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import AsJson, StateDir
from cli.updates_view import show_history, show_status, show_update
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub

TIMEOUT_SECONDS = 30.0
CHECK_SECONDS = 120.0  # a look at the hub goes over the network
WATCH_SECONDS = 0.5
MIN_DIGEST_DIGITS = 4

app = typer.Typer(no_args_is_help=True)
breaker_app = typer.Typer(no_args_is_help=True)
app.add_typer(breaker_app, name="breaker", help="The circuit breakers.")

Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Needed where several models are served.", show_default=False),
]
Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="Source digest, or its first digits.")]


@app.command(epilog="Example:  hotslot updates status")
def status(*, model: Model = "", state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show where each model's updates stand, and what to do if something must be done."""
    with _updater(state_dir) as stub:
        response = stub.GetStatus(pb.GetStatusRequest(model=model), timeout=TIMEOUT_SECONDS)
    if as_json:
        print_json(plain(response))
    else:
        out.print(show_status(response))


@app.command(epilog="Example:  hotslot updates watch")
def watch(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Show the same and keep it fresh, a transfer's bar among it, until Ctrl-C."""
    rest = threading.Event()
    with (
        _updater(state_dir) as stub,
        Live(console=out, auto_refresh=False) as live,
        contextlib.suppress(KeyboardInterrupt),
    ):
        while True:
            response = stub.GetStatus(pb.GetStatusRequest(model=model), timeout=TIMEOUT_SECONDS)
            live.update(show_status(response), refresh=True)
            rest.wait(WATCH_SECONDS)


@app.command(epilog="Example:  hotslot updates history --limit 5")
def history(
    *,
    model: Model = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most updates to show.")] = 20,
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


@app.command(epilog="Example:  hotslot updates show 20260821-101500-3f2a")
def show(
    update_id: Annotated[str, typer.Argument(metavar="ID", help="Id of an update; `history` lists them.")],
    *,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Tell one update whole: what happened, when, why, and what to do."""
    with _updater(state_dir) as stub:
        response = stub.GetUpdate(pb.GetUpdateRequest(update_id=update_id), timeout=TIMEOUT_SECONDS)
    if as_json:
        print_json(plain(response))
    else:
        out.print(show_update(response))


@app.command(epilog="Example:  hotslot updates check")
def check(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Look at the hub now."""
    with _updater(state_dir) as stub:
        response = stub.CheckNow(pb.CheckNowRequest(model=model), timeout=CHECK_SECONDS)
    print_text(response.message or "the hub was asked")


@app.command(epilog="Example:  hotslot updates update v1.2.0")
def update(
    revision: Annotated[str, typer.Argument(metavar="REV", help="Revision on the hub.")],
    *,
    model: Model = "",
    state_dir: StateDir = None,
) -> None:
    """Start an update to one revision, past a hold and the tag pattern; never past quarantine or the gate."""
    with _updater(state_dir) as stub:
        response = stub.Update(pb.UpdateRequest(model=model, revision=revision), timeout=CHECK_SECONDS)
    _tell_begun(response.update)


@app.command(epilog="Example:  hotslot updates rollback")
def rollback(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Go back to the previous committed revision, quarantine what serves, and hold updates."""
    with _updater(state_dir) as stub:
        response = stub.Rollback(pb.RollbackRequest(model=model), timeout=TIMEOUT_SECONDS)
    print_text((response.update.revision, "bold"), " is taken back and quarantined, and updates are on hold; see")
    print_text(f"    hotslot updates show {response.update.update_id}")


@app.command(epilog='Example:  hotslot updates pause --reason "release freeze"')
def pause(
    *,
    model: Model = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For the history.", show_default=False)] = "",
    state_dir: StateDir = None,
) -> None:
    """Take no updates until `resume`; one under way is rolled back."""
    with _updater(state_dir) as stub:
        response = stub.Pause(pb.PauseRequest(model=model, reason=reason), timeout=TIMEOUT_SECONDS)
    print_text((response.state.model, "bold"), " takes no updates until `hotslot updates resume`")


@app.command(epilog="Example:  hotslot updates resume")
def resume(*, model: Model = "", state_dir: StateDir = None) -> None:
    """Take updates again."""
    with _updater(state_dir) as stub:
        response = stub.Resume(pb.ResumeRequest(model=model), timeout=TIMEOUT_SECONDS)
    print_text((response.state.model, "bold"), " takes updates again")


@app.command(epilog="Example:  hotslot updates approve 3f2a91bc")
def approve(digest: Digest, *, model: Model = "", state_dir: StateDir = None) -> None:
    """Let one held digest go on; never one that failed verification."""
    with _updater(state_dir) as stub:
        state = _state_of(stub, model)
        whole = _whole_digest(digest, [state.current.source_digest], "held")
        request = pb.ApproveRequest(model=state.model, source_digest=whole)
        response = stub.Approve(request, timeout=TIMEOUT_SECONDS)
    _tell_begun(response.update)


@app.command(epilog="Example:  hotslot updates unquarantine 3f2a91bc")
def unquarantine(digest: Digest, *, model: Model = "", state_dir: StateDir = None) -> None:
    """Take a source digest out of quarantine: it may be tried again."""
    with _updater(state_dir) as stub:
        state = _state_of(stub, model)
        whole = _whole_digest(digest, [entry.source_digest for entry in state.quarantine], "in quarantine")
        request = pb.UnquarantineRequest(model=state.model, source_digest=whole)
        stub.Unquarantine(request, timeout=TIMEOUT_SECONDS)
    print_text((f"{whole[:19]} ", GOOD), "is out of quarantine")


@breaker_app.command(epilog="Example:  hotslot updates breaker reset activation")
def reset(
    breaker: Annotated[str, typer.Argument(metavar="NAME", help="hub, activation or device.")],
    *,
    model: Model = "",
    state_dir: StateDir = None,
) -> None:
    """Close a circuit breaker by hand."""
    with _updater(state_dir) as stub:
        request = pb.ResetBreakerRequest(model=model, breaker=breaker)
        response = stub.ResetBreaker(request, timeout=TIMEOUT_SECONDS)
    print_text(f"{response.breaker.name} is {response.breaker.state.lower()}")


@contextlib.contextmanager
def _updater(state_dir: StateDir) -> Iterator[UpdatesServiceStub]:
    with connection(updates_address(state_dir), TIMEOUT_SECONDS) as channel:
        yield UpdatesServiceStub(channel)


def _state_of(stub: UpdatesServiceStub, model: str) -> pb.ModelUpdates:
    """The one model that is meant."""
    models = stub.GetStatus(pb.GetStatusRequest(model=model), timeout=TIMEOUT_SECONDS).models
    if len(models) != 1:
        raise WronglyUsed(f"name a model with --model: {', '.join(one.model for one in models)}")
    return models[0]


def _whole_digest(given: str, known: list[str], what: str) -> str:
    """The one digest that begins so."""
    digits = given.lower().removeprefix("sha256:")
    if len(digits) < MIN_DIGEST_DIGITS:
        raise WronglyUsed(f"give at least {MIN_DIGEST_DIGITS} digits of the digest; `hotslot updates status` shows it")
    found = [digest for digest in known if digest.removeprefix("sha256:").startswith(digits)]
    if len(found) != 1:
        raise CommandFailed(f"no digest that is {what} begins with {digits}; `hotslot updates status` shows them")
    return found[0]


def _tell_begun(update_: pb.UpdateSummary) -> None:
    print_text((update_.revision or "the update", "bold"), f" is under way as {update_.update_id}; follow it with")
    print_text(f"    hotslot updates show {update_.update_id}")
