"""A server and an updater without processes: answers the console's calls from protos that a test sets."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from console.upstream import CallFailed
from hotslot.address.v1 import address_pb2
from hotslot.control.v1 import control_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BAD_SOURCE = "sha256:" + "c" * 64
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
ADDRESS = "浙江省杭州市文一西路969号"


class SimulatedUpstream:
    """One entailment and one address model; slot a serves v1.0.0."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked: list[Any] = []  # requests to models, and commands
        self.answers = asyncio.Event()  # while it is not set, the models do not answer
        self.answers.set()
        self.predictions = asyncio.Semaphore(0)  # that were asked for
        self.candidate = False  # whether slot b holds v1.1.0
        self.answered = 0
        self.active = OLD  # digest of slot a's bundle
        self.failed: dict[str, int] = {}  # by reason
        self.refused: dict[str, int] = {}
        self.held: pb.GetUpdateResponse | None = None
        self.failure: CallFailed | None = None  # of the next command
        self.on_command: Callable[[], None] = lambda: None  # called with each command
        self.differing: list[pb.DifferingItem] = []
        self.items: list[pb.GoldenItem] = [
            pb.GoldenItem(item="street-1", texts=["there is a dog"], expected=["yes"], has_picture=True),
            pb.GoldenItem(item="street-2", texts=["<b>a cat</b>"], expected=["no"], has_picture=True),
        ]

    async def close(self) -> None:
        """See `Upstream`."""

    async def server_status(self) -> status_pb2.GetServerStatusResponse:
        """See `Upstream`."""
        self._require()
        found = status_pb2.GetServerStatusResponse(node="node-1", version="0.1.0")
        found.process.level = found.resources.level = status_pb2.HEALTH_LEVEL_OK
        found.limits.max_image_bytes = 1 << 20
        for name in ("shapes", "addresses"):
            found.capabilities.add(model=name, level=status_pb2.HEALTH_LEVEL_OK, ready=True)
        return found

    async def models(self) -> Sequence[status_pb2.Model]:
        """See `Upstream`."""
        self._require()
        return [
            _model("shapes", "visual-entailment", self.candidate),
            _model("addresses", "token-classification", False),
        ]

    async def control_status(self) -> control_pb2.GetStatusResponse:
        """See `Upstream`."""
        self._require()
        state = control_pb2.ModelState(model="shapes", task="visual-entailment", generation=1)
        active = state.slots.add(slot="a", load_id="load-a", revision="v1.0.0", state="LOADED", role="ACTIVE")
        active.bundle_digest = self.active
        if self.candidate:
            state.slots.add(
                slot="b", load_id="load-b", bundle_digest=NEW, revision="v1.1.0", state="LOADED", role="CANDIDATE"
            )
        row = state.stats.add(bundle_digest=OLD, device="cpu", answered=self.answered)
        row.latency.add(count=self.answered).at_most.FromMilliseconds(10)
        row.latency.add(count=0)
        row.labels.add(label="yes", count=3)
        row.labels.add(label="no", count=1)
        row.failed.update(self.failed)
        row.refused.update(self.refused)
        return control_pb2.GetStatusResponse(models=[state])

    async def updates_status(self) -> Sequence[pb.ModelUpdates]:
        """See `Upstream`."""
        self._require()
        state = pb.ModelUpdates(model="shapes", stage=pb.UPDATE_STAGE_IDLE, committed_revision="v1.0.0")
        state.quarantine.add(source_digest=BAD_SOURCE, revision="v1.2.0", reason="WORSE")
        if self.held is not None:
            state.stage = self.held.update.stage
            state.current.CopyFrom(self.held.update)
        return [state, pb.ModelUpdates(model="addresses", stage=pb.UPDATE_STAGE_IDLE)]

    async def predict(self, request: entailment_pb2.PredictRequest) -> entailment_pb2.PredictResponse:
        """See `Upstream`."""
        self._require()
        self.asked.append(request)
        self.predictions.release()
        await self.answers.wait()
        if not request.image.content:
            raise CallFailed("image.content is missing", reason="IMAGE_MISSING", field="image.content")
        return _judge(request, "v1.0.0", "a", entailment_pb2.LABEL_YES)

    async def tag(self, request: address_pb2.PredictRequest) -> address_pb2.PredictResponse:
        """See `Upstream`."""
        self._require()
        self.asked.append(request)
        answer = address_pb2.PredictResponse(served_by=address_pb2.ServedBy(model="addresses", revision="v1.0.0"))
        for address in request.addresses:
            result = answer.results.add()
            if address.startswith("浙江省"):
                result.spans.add(kind="prov", text="浙江省", start=0, end=3, probability=0.99)
                result.spans.add(kind="city", text="杭州市", start=3, end=6, probability=0.98)
        return answer

    async def probe(self, request: control_pb2.ProbeSlotRequest) -> control_pb2.ProbeSlotResponse:
        """See `Upstream`."""
        self.asked.append(request)
        judged = _judge(request.entailment.requests[0], "v1.1.0", "b", entailment_pb2.LABEL_NO)
        return control_pb2.ProbeSlotResponse(outcomes=[control_pb2.ProbeOutcome(entailment=judged)])

    async def ask_updater(self, method: str, request: Any, seconds: float = 0.0) -> Any:  # noqa: ANN401  as the real one
        """See `Upstream`."""
        del seconds
        self._require()
        match method:
            case "ListGoldenItems":
                return self._list_items(request)
            case "GetGoldenPicture" | "GetKeptPicture":
                return pb.GetGoldenPictureResponse(content=PNG)  # both have the same field
            case "GetUpdate" | "ListDifferingItems":
                if self.held is None or request.update_id != self.held.update.update_id:
                    raise CallFailed("there is no such update", reason="UPDATE_UNKNOWN")
                return self.held if method == "GetUpdate" else self._list_differing(request)
            case "ListHistory":
                return pb.ListHistoryResponse(updates=[self.held.update] if self.held is not None else [])
        self.asked.append(request)
        self.on_command()
        if self.failure is not None:
            raise self.failure
        if method == "AddGoldenItem":
            self.items.append(request.item)
            return pb.AddGoldenItemResponse(item=request.item, total_items=len(self.items))
        return None

    def hold(self) -> None:
        """An update is HELD, and differs on three golden items."""
        found = pb.GetUpdateResponse(advice="compare, then approve", advice_code="AGREEMENT")
        found.update.update_id, found.update.model, found.update.revision = "u-1", "shapes", "v1.3.0"
        found.update.source_digest, found.update.stage = BAD_SOURCE, pb.UPDATE_STAGE_HELD
        found.update.reason, found.update.message = "AGREEMENT", "its answers differ"
        for second, stage in enumerate((pb.UPDATE_STAGE_STAGING, pb.UPDATE_STAGE_VERIFYING, pb.UPDATE_STAGE_GATING)):
            event = found.events.add(stage=stage, name="entered", message=f"event {second}")
            event.at.FromSeconds(1_000 + 10 * second)
        found.measurements.add(name="agreement", candidate=0.7, active=1.0, threshold=0.95, passed=False)
        kept = found.kept.add(name="20300101T000000-u-1/0001", request_id="id 1", has_picture=True)
        kept.answers.add(text="a <b>dog</b>", active="yes", candidate="no")
        kept.answers.add(text="a bird", active="yes", candidate="yes")
        found.measurements.add(name="latency_p95_seconds", candidate=0.05, active=0.02, threshold=0.1, passed=True)
        self.differing = [
            make_difference("street-1", "yes", "yes", "no", pb.DIFFERENCE_KIND_NOW_WRONG),
            make_difference("street-2", "no", "maybe", "no", pb.DIFFERENCE_KIND_NOW_RIGHT),
            make_difference("gone", "", "yes", "maybe", pb.DIFFERENCE_KIND_CHANGED),
        ]
        for before, after, count in (("yes", "yes", 5), ("yes", "no", 1), ("maybe", "no", 1), ("yes", "maybe", 1)):
            found.label_pairs.add(active=before, candidate=after, count=count)
        self.held = found

    def _list_differing(self, request: pb.ListDifferingItemsRequest) -> pb.ListDifferingItemsResponse:
        wanted = [row for row in self.differing if request.kind in (pb.DIFFERENCE_KIND_UNSPECIFIED, row.kind)]
        begin = int(request.page_token or 0)
        end = begin + request.page_size
        counts = Counter(row.kind for row in self.differing)
        return pb.ListDifferingItemsResponse(
            items=wanted[begin:end],
            next_page_token=str(end) if end < len(wanted) else "",
            counts=[pb.DifferenceCount(kind=kind, count=count) for kind, count in counts.items()],
        )

    def _list_items(self, request: pb.ListGoldenItemsRequest) -> pb.ListGoldenItemsResponse:
        begin, size = int(request.page_token or 0), request.page_size or 50
        return pb.ListGoldenItemsResponse(
            items=self.items[begin : begin + size],
            next_page_token=str(begin + size) if begin + size < len(self.items) else "",
            total_items=len(self.items),
            total_questions=len(self.items),
            total_expected=len(self.items),
            labels=[pb.LabelCount(label="yes", count=1), pb.LabelCount(label="no", count=1)],
        )

    def _require(self) -> None:
        if self.is_away:
            raise CallFailed("no server answers; `hotslot serve` starts one", is_away=True)


def make_difference(
    item: str, expected: str, active: str, candidate: str, kind: "pb.DifferenceKind.ValueType"
) -> pb.DifferingItem:
    """A golden item on which two models differ."""
    return pb.DifferingItem(
        item=item, text=f"text of {item}", expected=expected, active=active, candidate=candidate, kind=kind
    )


def _model(name: str, task: str, candidate: bool) -> status_pb2.Model:  # noqa: FBT001  one call
    model = status_pb2.Model(name=name, task=task, active_slot="a")
    loaded, ready = status_pb2.SLOT_STATE_LOADED, status_pb2.SLOT_STATE_READY
    model.slots.add(
        name="a", state=loaded, role=status_pb2.SLOT_ROLE_ACTIVE, revision="v1.0.0", digest=OLD, device="cpu"
    )
    if candidate:
        model.slots.add(name="b", state=loaded, role=status_pb2.SLOT_ROLE_CANDIDATE, revision="v1.1.0", digest=NEW)
    else:
        model.slots.add(name="b", state=ready, role=status_pb2.SLOT_ROLE_FREE)
    return model


def _judge(
    request: entailment_pb2.PredictRequest, revision: str, slot: str, label: "entailment_pb2.Label.ValueType"
) -> entailment_pb2.PredictResponse:
    answer = entailment_pb2.PredictResponse()
    answer.served_by.model, answer.served_by.revision, answer.served_by.slot = "shapes", revision, slot
    for _ in request.statements:
        answer.results.add(label=label, scores=entailment_pb2.LabelScores(yes=0.7, no=0.2, maybe=0.1))
    return answer
