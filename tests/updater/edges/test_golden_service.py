"""Golden sets through UpdatesService: page by page, picture by picture, and with an item more."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.engine_files import Task
from common.errors import HotslotError, NotReady
from common.logs import get_logger
from dev.harness.waiting import eventually
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.facts import GoldenFacts
from updater.golden_files import GoldenFiles
from updater.service import golden
from updater.service.callers import GOLDEN_PLACES
from updater.service.golden import GoldenApi, GoldenPlace

LIMIT_SECONDS = 10.0

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
DOG = pb.GoldenItem(item="dog", texts=["there is a dog"], expected=["yes"])


@pytest.fixture
def api(tmp_path: Path) -> GoldenApi:
    """An entailment model with an empty folder, an address model, and one without a golden set."""
    tasks = {"shapes": Task.VISUAL_ENTAILMENT, "addresses": Task.ADDRESS_TAGGING, "bare": Task.VISUAL_ENTAILMENT}
    found = {}
    for name, task in tasks.items():
        folder = None if name == "bare" else tmp_path / name
        if folder is not None:
            folder.mkdir()
        found[name] = GoldenPlace(folder, task)
    return GoldenApi(lambda: found, get_logger())


def add(api: GoldenApi, item: pb.GoldenItem, model: str = "shapes", picture: bytes = PNG) -> pb.AddGoldenItemResponse:
    """Add one item."""
    return api.add(pb.AddGoldenItemRequest(model=model, item=item, picture=picture), 1.0)


def test_added_items_are_listed_page_by_page(api: GoldenApi) -> None:
    """With what the whole set covers; the question is always the same, so that it counts once."""
    for name in "abc":
        add(api, pb.GoldenItem(item=name, texts=["x"], expected=["yes" if name == "a" else "no"]))
    first = api.list_items(pb.ListGoldenItemsRequest(model="shapes", page_size=2), 1.0)
    rest = api.list_items(pb.ListGoldenItemsRequest(model="shapes", page_size=2, page_token=first.next_page_token), 1.0)
    assert (first.total_questions, first.total_expected) == (1, 1)
    names = [item.item for page in (first, rest) for item in page.items]
    labels = [(row.label, row.count) for row in first.labels]
    assert (names, labels, first.total_items, rest.next_page_token) == (["a", "b", "c"], [("no", 2), ("yes", 1)], 3, "")


def test_a_picture_comes_back_as_it_was_added(api: GoldenApi) -> None:
    """By the item's name."""
    add(api, DOG)
    assert api.picture(pb.GetGoldenPictureRequest(model="shapes", item="dog"), 1.0).content == PNG


def test_an_address_is_added_with_its_parts(api: GoldenApi) -> None:
    """Places are found in the text."""
    item = pb.GoldenItem(texts=["浙江省杭州市"], expected=['[["prov","浙江省"],["city","杭州市"]]'])
    added = add(api, item, "addresses", b"")
    assert list(added.item.expected) == ['[["prov", "浙江省", 0], ["city", "杭州市", 3]]']


CALLS: list[tuple[Callable[[GoldenApi], object], str, str]] = [
    (lambda api: api.list_items(pb.ListGoldenItemsRequest(model="none"), 1.0), "MODEL_UNKNOWN", "model"),
    (lambda api: api.list_items(pb.ListGoldenItemsRequest(), 1.0), "MODEL_REQUIRED", "model"),
    (lambda api: api.list_items(pb.ListGoldenItemsRequest(model="bare"), 1.0), "NO_GOLDEN", ""),
    (lambda api: api.list_items(pb.ListGoldenItemsRequest(model="shapes"), 1.0), "GOLDEN_UNUSABLE", ""),
    (
        lambda api: api.list_items(pb.ListGoldenItemsRequest(model="shapes", page_size=501), 1.0),
        "MESSAGE_MALFORMED",
        "page_size",
    ),
    (
        lambda api: api.list_items(pb.ListGoldenItemsRequest(model="shapes", page_token=str(-1)), 1.0),
        "MESSAGE_MALFORMED",
        "page_token",
    ),
    (lambda api: add(api, DOG, picture=b"GIF89a"), "ITEM_WRONG", "item"),
    (lambda api: add(api, pb.GoldenItem(texts=["x"], expected=["yes", "no"])), "ITEM_WRONG", "item"),
    (
        lambda api: add(api, pb.GoldenItem(texts=["x"], expected=["no json"]), "addresses", b""),
        "ITEM_WRONG",
        "item",
    ),
    (lambda api: [add(api, DOG), add(api, DOG)], "ITEM_EXISTS", "item.item"),
    (
        lambda api: [add(api, DOG), api.picture(pb.GetGoldenPictureRequest(model="shapes", item="cat"), 1.0)],
        "ITEM_UNKNOWN",
        "item",
    ),
]


@pytest.mark.parametrize(("call", "reason", "field"), CALLS, ids=[f"{row[1]}-{row[2]}" for row in CALLS])
def test_a_wrong_call_is_refused_with_its_reason(
    api: GoldenApi, call: Callable[[GoldenApi], object], reason: str, field: str
) -> None:
    """And no message has a path."""
    with pytest.raises(HotslotError) as refused:
        call(api)
    error = refused.value
    assert (error.reason, error.field, "/" in str(error)) == (reason, field, False)


class BusyDisk:
    """A disk that answers when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Semaphore(0)
        self.may_answer = threading.Event()
        monkeypatch.setattr(GoldenFiles, "facts", self.facts)

    def facts(self) -> GoldenFacts:
        """None yet."""
        self.asked.release()
        assert self.may_answer.wait(LIMIT_SECONDS)
        return GoldenFacts("", problem="EMPTY")


def read_in_thread(api: GoldenApi, seconds: float = LIMIT_SECONDS) -> threading.Thread:
    """A call that is refused in the end."""

    def read() -> None:
        with pytest.raises(HotslotError):
            api.list_items(pb.ListGoldenItemsRequest(model="shapes"), seconds)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_reading_takes_a_few_threads_at_most(api: GoldenApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth call is refused at once; who waits for another one's reading waits no longer than it may."""
    disk = BusyDisk(monkeypatch)
    threads = [read_in_thread(api)]
    assert disk.asked.acquire(timeout=LIMIT_SECONDS)
    with pytest.raises(NotReady, match="for another call"):
        api.list_items(pb.ListGoldenItemsRequest(model="shapes"), 0.01)
    with pytest.raises(NotReady, match="for another call"):
        add_within(api, 0.01)
    monkeypatch.setattr(golden, "LOCK_SECONDS", LIMIT_SECONDS)
    threads += [read_in_thread(api) for _ in range(GOLDEN_PLACES - 1)]
    eventually(lambda: api._calls._value == 0, what="all places are taken")  # noqa: SLF001
    with pytest.raises(NotReady, match="too many golden-set calls") as refused:
        api.picture(pb.GetGoldenPictureRequest(model="addresses", item="x"), LIMIT_SECONDS)
    assert refused.value.reason == "UPDATER_BUSY"
    disk.may_answer.set()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def add_within(api: GoldenApi, seconds: float) -> None:
    """Add one item, in so many seconds."""
    api.add(pb.AddGoldenItemRequest(model="shapes", item=DOG, picture=PNG), seconds)


def test_a_large_set_is_read_in_the_time_of_the_calls(api: GoldenApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads on where the one before ended; one with time enough reads it whole."""
    for name in "abc":
        total = add(api, pb.GoldenItem(item=name, texts=["x"]), picture=PNG + name.encode()).total_items
    assert total == 3
    monkeypatch.setattr(golden, "LOOK_SECONDS", 0.0)  # a picture in each look
    other = GoldenApi(api._places, get_logger())  # noqa: SLF001
    for _ in range(2):
        with pytest.raises(NotReady, match="still being read"):
            other.list_items(pb.ListGoldenItemsRequest(model="shapes"), 0.0)
    assert other.list_items(pb.ListGoldenItemsRequest(model="shapes"), 0.0).total_items == 3
    third = GoldenApi(api._places, get_logger())  # noqa: SLF001
    assert third.list_items(pb.ListGoldenItemsRequest(model="shapes"), LIMIT_SECONDS).total_items == 3
