"""Past updates and their evidence, as operators read them by UpdatesService. Called in threads of the gRPC server."""

from collections.abc import Callable
from pathlib import Path

from common.bundle import Provenance
from common.errors import NotFound
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.record import ModelRecord
from updater.service import convert, samples
from updater.service.pages import read_page
from updater.store.journal import Journal, PastUpdate

MAX_PAGE, DEFAULT_PAGE = 200, 20
MAX_ITEMS, DEFAULT_ITEMS = 500, 50


class HistoryApi:
    """The handlers for past updates."""

    def __init__(
        self,
        names: Callable[[], tuple[str, ...]],
        journal: Callable[[], Journal],
        record: Callable[[str], ModelRecord | None],
        provenance: Callable[[str], Provenance | None],
        state: Path = Path(),
    ) -> None:
        """Read nothing yet.

        Args:
            names: returns the configured models.
            journal: returns the journal; see `UpdatesApi`.
            record: returns a model's present record; None if its updater does not run.
            provenance: returns the provenance of the bundle with a digest.
            state: state folder: the server keeps requests in it.
        """
        self._names, self._journal, self._record, self._provenance = names, journal, record, provenance
        self._state = state

    def list_updates(self, request: pb.ListHistoryRequest, _seconds: float) -> pb.ListHistoryResponse:
        """Past updates, newest first."""
        if request.model and request.model not in self._names():
            raise build_unknown_error(request.model)
        size, before = read_page(request, DEFAULT_PAGE, MAX_PAGE)
        rows = self._journal().history(request.model, size + 1, before)
        more = rows[size - 1][0] if len(rows) > size else 0
        alarms = [] if request.page_token else self._journal().alarms(request.model, size)
        return pb.ListHistoryResponse(
            alarms=[convert.to_alarm(model, alarm) for model, alarm in alarms],
            updates=[convert.to_past_summary(past) for _, past in rows[:size]],
            next_page_token=str(more) if more else "",
        )

    def get_update(self, request: pb.GetUpdateRequest, _seconds: float) -> pb.GetUpdateResponse:
        """One update with its events and evidence."""
        journal = self._journal()
        past = _find_update(journal, request.update_id)
        advice = convert.build_past_advice(past, self._record(past.model))
        response = pb.GetUpdateResponse(
            update=convert.to_past_summary(past),
            events=[convert.to_event(event) for event in journal.events(request.update_id)],
            advice=advice.sentence,
            advice_code=advice.code,
        )
        convert.fill_provenance(response.provenance, self._provenance(past.update.bundle_digest))
        for evidence in journal.evidence(request.update_id):
            convert.fill_evidence(response, evidence)
        response.kept.extend(samples.list_kept(self._state, past.model, request.update_id))
        return response

    def get_kept_picture(self, request: pb.GetKeptPictureRequest, _seconds: float) -> pb.GetKeptPictureResponse:
        """The picture of a request that two revisions answered differently."""
        past = _find_update(self._journal(), request.update_id)
        content = samples.read_picture(self._state, past.model, request.update_id, request.name)
        return pb.GetKeptPictureResponse(content=content)

    def list_differing(self, request: pb.ListDifferingItemsRequest, _seconds: float) -> pb.ListDifferingItemsResponse:
        """One page of the golden items on which the models differ."""
        size, begin = read_page(request, DEFAULT_ITEMS, MAX_ITEMS)
        journal = self._journal()
        _find_update(journal, request.update_id)
        rows = [row for evidence in journal.evidence(request.update_id) for row in evidence.differing]
        return convert.to_differing_page(rows, request.kind, begin, size)


def _find_update(journal: Journal, update_id: str) -> PastUpdate:
    past = journal.update(update_id)
    if past is None:
        raise NotFound(f"there is no update {update_id[:64]!r}", reason="UPDATE_UNKNOWN", field="update_id")
    return past


def build_unknown_error(model: str) -> NotFound:
    """The error for a model that is not configured."""
    return NotFound("no such model is configured", field="model", resource=("model", model[:128]))
