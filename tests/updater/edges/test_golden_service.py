"""Golden sets through UpdatesService: page by page, picture by picture, and with an item more."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.engine_files import Task
from common.errors import HotslotError
from common.logs import get_logger
from hotslot.updates.v1 import updates_pb2 as pb
from updater.service.golden import GoldenApi, GoldenPlace

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
