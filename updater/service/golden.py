"""The golden sets, as operators see and extend them by UpdatesService. Called in threads of the gRPC server."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.answers import TASK_ANSWERS
from common.clock import Clock, SystemClock
from common.durable import LockTimeout
from common.engine_files import Task
from common.errors import Conflict, InputRefused, NotFound, NotReady
from common.golden_set import (
    MAX_SET_BYTES,
    SET_NAME,
    GoldenBroken,
    GoldenFolder,
    GoldenItem,
    ItemExists,
    add_item,
    parse,
    read_regular,
)
from common.json_load import load_json
from common.logs import Logger
from hotslot.updates.v1 import updates_pb2 as pb
from updater.golden_files import LOOK_SECONDS, GoldenFiles
from updater.service.callers import GOLDEN_PLACES
from updater.service.pages import read_page

MAX_PAGE, DEFAULT_PAGE = 500, 50
MAX_LABELS = 100
LOCK_SECONDS = 5.0  # longest wait for another call that reads the same set


@dataclass(frozen=True, slots=True)
class GoldenPlace:
    """Where the golden set of one model is, by the settings."""

    folder: Path | None  # None: none is configured
    task: Task
    min_accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class _Opened:
    """A golden set that is read again when its files change."""

    place: GoldenPlace
    files: GoldenFiles
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `files`


class GoldenApi:
    """The handlers for golden sets. However long the disk takes, a few of them run at the same time."""

    def __init__(
        self, places: Callable[[], Mapping[str, GoldenPlace]], log: Logger, clock: Clock | None = None
    ) -> None:
        """Read nothing yet; `places` is asked at each call, since the settings may change."""
        self._places, self._log, self._clock = places, log, clock or SystemClock()
        self._calls = threading.BoundedSemaphore(GOLDEN_PLACES)
        self._opened: dict[str, _Opened] = {}

    def list_items(self, request: pb.ListGoldenItemsRequest, seconds: float) -> pb.ListGoldenItemsResponse:
        """One page of a set."""
        model = self._find(request.model)
        size, begin = read_page(request, DEFAULT_PAGE, MAX_PAGE)
        with self._take_place():
            found = self._load(model, seconds)
        items = found.golden.items
        rules = TASK_ANSWERS[model.place.task]
        labels = Counter(label for item in items for answer in item.expected for label in rules.list_labels(answer))
        return pb.ListGoldenItemsResponse(
            items=[_to_message(item) for item in items[begin : begin + size]],
            next_page_token=str(begin + size) if begin + size < len(items) else "",
            total_items=len(items),
            total_questions=found.distinct.questions,
            total_expected=found.distinct.expected,
            min_accuracy=max(found.golden.min_accuracy, model.files.min_accuracy),
            digest=found.digest,
            labels=[pb.LabelCount(label=label, count=count) for label, count in labels.most_common(MAX_LABELS)],
        )

    def picture(self, request: pb.GetGoldenPictureRequest, seconds: float) -> pb.GetGoldenPictureResponse:
        """The picture of one item."""
        with self._take_place():
            return self._read_picture(self._load(self._find(request.model), seconds), request)

    def add(self, request: pb.AddGoldenItemRequest, seconds: float) -> pb.AddGoldenItemResponse:
        """Add one item."""
        model = self._find(request.model)
        folder = _folder(model)
        try:
            item = _from_message(request.item, model.place.task)
            with self._take_place(), _hold(model, seconds):
                added = add_item(folder, model.place.task, item, request.picture)
                total = _count_items(folder, model.place.task)
        except ItemExists as error:
            raise Conflict(str(error), reason="ITEM_EXISTS", field="item.item") from error
        except (GoldenBroken, ValueError) as error:
            raise InputRefused(str(error), reason="ITEM_WRONG", field="item") from error
        except LockTimeout as error:
            raise NotReady("another process changes the golden set", reason="UPDATER_BUSY") from error
        except OSError as error:
            reason = (error.strerror or "failed").lower()
            raise Conflict(f"the golden set cannot be written: {reason}", reason="GOLDEN_READ_ONLY") from error
        by, why = request.operator.name, request.operator.reason
        self._log.info("golden_item_added", model=request.model, item=added.item, operator=by, reason=why)
        return pb.AddGoldenItemResponse(item=_to_message(added), total_items=total)

    def _find(self, name: str) -> _Opened:
        places = self._places()
        if not name and len(places) == 1:
            name = next(iter(places))
        place = places.get(name)
        if place is None:
            if not name:
                message = f"several models are configured, name one of them: {', '.join(places)}"
                raise InputRefused(message, reason="MODEL_REQUIRED", field="model")
            raise NotFound("no such model is configured", field="model", resource=("model", name[:128]))
        found = self._opened.get(name)
        if found is None or found.place != place:
            found = self._opened[name] = _Opened(place, self._open(place))
        return found

    def _read_picture(self, found: GoldenFolder, request: pb.GetGoldenPictureRequest) -> pb.GetGoldenPictureResponse:
        item = next((item for item in found.golden.items if item.item == request.item), None)
        if item is None or not item.image:
            sentence = f"the golden set has no {'picture of' if item else 'item'} {request.item[:128]!r}"
            raise NotFound(sentence, reason="ITEM_UNKNOWN", field="item")
        try:
            return pb.GetGoldenPictureResponse(content=found.picture(item))
        except GoldenBroken as error:
            raise Conflict(str(error), reason="GOLDEN_UNUSABLE") from error

    def _open(self, place: GoldenPlace) -> GoldenFiles:
        return GoldenFiles(place.folder, place.task, place.min_accuracy, self._clock, LOOK_SECONDS)

    @contextmanager
    def _take_place(self) -> Iterator[None]:
        if not self._calls.acquire(blocking=False):
            raise _build_busy_error("too many golden-set calls are in progress")
        try:
            yield
        finally:
            self._calls.release()

    def _load(self, model: _Opened, seconds: float) -> GoldenFolder:
        """The set as it is on disk now; what a call has read of a large one in its time is not read again."""
        _folder(model)
        ends = self._clock.monotonic() + seconds
        while True:
            with _hold(model, ends - self._clock.monotonic()):
                facts = model.files.facts()
                found = model.files.load() if facts.is_read else None
            if found is not None:
                return found
            if facts.problem:
                sentence = f"the golden set is {facts.problem.lower().replace('_', ' ')}"
                raise Conflict(f"{sentence}; `hotslot golden show` says why", reason="GOLDEN_UNUSABLE")
            if self._clock.monotonic() >= ends:
                raise _build_busy_error("the golden set is still being read")


@contextmanager
def _hold(model: _Opened, seconds: float) -> Iterator[None]:
    """Within the block no other call reads the set.

    Raises:
        NotReady: another one does, for long.
    """
    if not model.lock.acquire(timeout=max(0.0, min(seconds, LOCK_SECONDS))):
        raise _build_busy_error("the golden set is being read for another call")
    try:
        yield
    finally:
        model.lock.release()


def _build_busy_error(why: str) -> NotReady:
    return NotReady(f"{why}; ask again", reason="UPDATER_BUSY", retry_after_seconds=1.0)


def _count_items(folder: Path, task: Task) -> int:
    """How many items a set has, without its pictures."""
    return len(parse(read_regular(folder / SET_NAME, MAX_SET_BYTES, SET_NAME).decode("utf-8"), task.value).items)


def _folder(model: _Opened) -> Path:
    if model.place.folder is None:
        raise Conflict("the settings name no golden set for this model", reason="NO_GOLDEN")
    return model.place.folder


def _to_message(item: GoldenItem) -> pb.GoldenItem:
    return pb.GoldenItem(
        item=item.item, premise=item.premise, texts=item.texts, expected=item.expected, has_picture=bool(item.image)
    )


def _from_message(message: pb.GoldenItem, task: Task) -> GoldenItem:
    """An item without its picture.

    Raises:
        ValueError: an expected answer is none.
    """
    rules = TASK_ANSWERS[task]
    texts = tuple(message.texts)
    if message.expected and len(message.expected) != len(texts):
        raise ValueError(f"expected has {len(message.expected)} answers to {len(texts)} questions")
    expected = tuple(
        rules.parse(text, answer if rules.has_picture else load_json(answer))
        for text, answer in zip(texts, message.expected, strict=False)
    )
    if rules.has_picture:
        return GoldenItem(message.item, premise=message.premise, statements=texts, expected=expected)
    return GoldenItem(message.item, addresses=texts, expected=expected)
