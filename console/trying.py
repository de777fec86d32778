"""The page on which a picture or an address is tried, and who answered."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from console.page import (
    FormRefused,
    console_of,
    is_partial,
    picture_of,
    read_form,
    render,
    text_of,
)
from console.upstream import CallFailed, describe_status, list_golden_items
from console.views import ModelView, list_models
from hotslot.address.v1 import address_pb2
from hotslot.control.v1 import control_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.updates.v1 import updates_pb2

GALLERY = 8  # golden items to begin with
_DEFAULT_PICTURE_BYTES = 16 << 20
_BASE64 = 4 / 3
_MAX_LINES = 64
_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}


def find_kind(picture: bytes) -> str:
    """The media type of a picture, by its content; empty if it is none that the server takes."""
    return next((kind for mark, kind in _KINDS.items() if picture.startswith(mark)), "")


@dataclass(frozen=True, slots=True)
class SlotAnswer:
    """One slot's answer, or why there is none."""

    response: entailment_pb2.PredictResponse | address_pb2.PredictResponse | None
    problem: str = ""
    reason: str = ""
    role: str = ""  # of the slot that was asked beside the active one


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an address: a part with its kind, or what lies between two."""

    text: str
    kind: str = ""
    probability: float = 0.0
    tone: int = 0  # number of its colour


async def find_model(request: Request) -> tuple[ModelView, int]:
    """The model of a page's path, and the most bytes of a picture.

    Raises:
        CallFailed: there is none.
    """
    console = console_of(request)
    snapshot = await console.live.current()
    for view in list_models(snapshot, console.live.histories):
        if view.name == request.path_params["model"]:
            limit = snapshot.server.limits.max_image_bytes if snapshot.server is not None else 0
            return view, limit or _DEFAULT_PICTURE_BYTES
    if not snapshot.has_server:
        raise CallFailed(snapshot.problems[0].sentence if snapshot.problems else "no server answers", is_away=True)
    raise CallFailed(f"no model is named {request.path_params['model'][:128]!r}", reason="MODEL_UNKNOWN")


async def show(request: Request) -> Response:
    """The empty form, with a gallery; `?item=` fills it with a golden item."""
    view, _ = await find_model(request)
    chosen = await _find_item(request, view)
    return render(request, "try.html", view=view, gallery=await _gallery(request, view), **_form_values(view, chosen))


async def ask(request: Request) -> Response:
    """Ask the active slot, and the other one beside it if it is loaded."""
    view, most = await find_model(request)
    form = await read_form(request, int(most * (1 + _BASE64)) + 1024)
    lines = [line.strip() for line in text_of(form, "texts").splitlines() if line.strip()][:_MAX_LINES]
    picture = await read_picture(request, form, view) if view.is_entailment else b""
    if len(picture) > most:
        raise FormRefused("the picture is larger than the server takes", 413, f"{len(picture)} > {most} bytes")
    premise = text_of(form, "premise").strip()
    answers = await _ask_slots(request, view, picture, lines, premise)
    parts = [] if view.is_entailment else [_cut(lines, answer) for answer in answers]
    values: dict[str, Any] = {
        "view": view,
        "lines": lines,
        "premise": premise,
        "answers": answers,
        "parts": parts,
        "snippets": _snippets(request, view, lines, premise),
        "kept": "" if is_partial(request) else base64.b64encode(picture).decode(),
        "kept_kind": find_kind(picture),
    }
    if is_partial(request):
        return render(request, "_answers.html", **values)
    return render(request, "try.html", gallery=await _gallery(request, view), item="", **values)


async def read_picture(request: Request, form: FormData, view: ModelView) -> bytes:
    """The picture that was chosen now, else the one that the page kept, else that of the golden item."""
    picture = await picture_of(form)
    if picture:
        return picture
    kept = text_of(form, "kept")
    if kept:
        try:
            return base64.b64decode(kept, validate=True)
        except ValueError as error:
            raise FormRefused("the picture that the page kept is damaged: choose it again") from error
    item = text_of(form, "item")
    if not item:
        return b""  # the server says that it is missing, and how
    request_ = updates_pb2.GetGoldenPictureRequest(model=view.name, item=item)
    found: updates_pb2.GetGoldenPictureResponse = await console_of(request).upstream.ask_updater(
        "GetGoldenPicture", request_
    )
    return found.content


async def _ask_slots(
    request: Request, view: ModelView, picture: bytes, lines: list[str], premise: str
) -> list[SlotAnswer]:
    upstream = console_of(request).upstream
    answers = []
    if view.is_entailment:
        image = entailment_pb2.Image(content=picture) if picture else None
        wanted = entailment_pb2.PredictRequest(model=view.name, image=image, statements=lines, premise=premise)
        items = control_pb2.ProbeSlotRequest(entailment=control_pb2.EntailmentItems(requests=[wanted]))
    else:
        asked = address_pb2.PredictRequest(model=view.name, addresses=lines)
        items = control_pb2.ProbeSlotRequest(address=control_pb2.AddressItems(requests=[asked]))
    try:
        answered = await (upstream.predict(wanted) if view.is_entailment else upstream.tag(asked))
        answers.append(SlotAnswer(answered))
    except CallFailed as error:
        return [SlotAnswer(None, str(error), error.reason)]
    other = view.other
    if other is not None:
        items.model, items.load_id = view.name, other.load_id
        answers.append(await _probe(request, items, other.role))
    return answers


async def _probe(request: Request, items: control_pb2.ProbeSlotRequest, role: str) -> SlotAnswer:
    try:
        outcome = (await console_of(request).upstream.probe(items)).outcomes[0]
    except CallFailed as error:
        return SlotAnswer(None, str(error), error.reason, role)
    if outcome.WhichOneof("outcome") == "error":
        failed = describe_status(outcome.error)
        return SlotAnswer(None, str(failed), failed.reason, role)
    return SlotAnswer(outcome.entailment if outcome.HasField("entailment") else outcome.address, role=role)


def _cut(lines: list[str], answer: SlotAnswer) -> list[list[Part]]:
    """Each address in its parts, with what lies between them."""
    if not isinstance(answer.response, address_pb2.PredictResponse):
        return []
    tones: dict[str, int] = {}
    rows = []
    for line, result in zip(lines, answer.response.results, strict=False):
        row, place = [], 0
        for span in result.spans:
            if span.start > place:
                row.append(Part(line[place : span.start]))
            row.append(Part(span.text, span.kind, span.probability, tones.setdefault(span.kind, len(tones) % 8)))
            place = span.end
        if place < len(line):
            row.append(Part(line[place:]))
        rows.append(row)
    return rows


async def _gallery(request: Request, view: ModelView) -> list[updates_pb2.GoldenItem]:
    """The first golden items; none if there is no golden set or no updater."""
    asked = updates_pb2.ListGoldenItemsRequest(model=view.name, page_size=GALLERY)
    try:
        found: updates_pb2.ListGoldenItemsResponse = await console_of(request).upstream.ask_updater(
            "ListGoldenItems", asked
        )
    except CallFailed:
        return []
    return list(found.items)


async def _find_item(request: Request, view: ModelView) -> updates_pb2.GoldenItem:
    wanted = request.query_params.get("item", "")
    if wanted:
        async for item in list_golden_items(console_of(request).upstream, view.name):
            if item.item == wanted:
                return item
    return updates_pb2.GoldenItem()


def _form_values(view: ModelView, item: updates_pb2.GoldenItem) -> dict[str, Any]:
    del view
    return {
        "lines": list(item.texts),
        "premise": item.premise,
        "item": item.item,
        "answers": [],
        "parts": [],
        "snippets": [],
        "kept": "",
        "kept_kind": "",
    }


def _snippets(request: Request, view: ModelView, lines: list[str], premise: str) -> list[tuple[str, str]]:
    """The same call to copy, by tool or language."""
    environment = console_of(request).environment
    values = {"model": view.name, "lines": lines, "premise": premise, "json": json.dumps(lines, ensure_ascii=False)}
    task = "entailment" if view.is_entailment else "address"
    names = (("hotslot", "sh"), ("grpcurl", "grpcurl"), ("Python", "py"), ("Go", "go"), ("Java", "java"))
    return [
        (title, environment.get_template(f"snippets/{task}.{suffix}.txt").render(values)) for title, suffix in names
    ]
