"""The pages of golden sets: browse, check a live model, add, export and import items."""

import asyncio
import io
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from common.answers import AddressPart, format_parts
from common.engine_files import Task
from common.golden_set import MAX_SET_BYTES, SET_NAME, GoldenBroken, GoldenItem, format_item, parse
from console.access import CSRF_FIELD
from console.page import (
    FormRefused,
    check_csrf,
    console_of,
    hold_memory,
    picture_of,
    read_form,
    redirect,
    render,
    render_part,
    session_of,
    text_of,
)
from console.trying import find_kind, find_model, read_picture
from console.updating import require_operator
from console.upstream import COMMAND_SECONDS, CallFailed, list_golden_items
from console.views import ModelView
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.updates.v1 import updates_pb2 as pb

PAGE = 24
MAX_EXPORT_BYTES = 64 << 20
MAX_IMPORT_ITEMS = 500
_EXPORT_LIMIT = f"> {MAX_EXPORT_BYTES >> 20} MiB"
_SHOWN_WRONG = 50
MAX_CHECKS = 2  # at once
MAX_WAITING_CHECKS = 16
# With n answers of which none differs, the true share is below 3/n with 95 % certainty ("rule of three", Hanley and
# Lippman-Hand, JAMA 1983).
_RULE_OF_THREE = 3.0
_ENTRY_MARK = b"PK\x01\x02"
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks BZIP2 and LZMA without a limit
_STEP_BYTES = 1 << 20
# What zipfile raises for damaged content, by its compression.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    KeyError,
    UnicodeDecodeError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(slots=True)
class CheckProgress:
    """How far a check is."""

    total: int
    done: int = 0
    right: int = 0
    judged: int = 0  # answers with an expectation
    failed: int = 0
    wrong: list[tuple[str, str, str, str]] | None = None  # item, text, expected, answer; the first ones


class CheckPlaces:
    """Places for checks: each asks the live model as fast as it answers, so only a few run, and some wait."""

    def __init__(self) -> None:
        self._running = asyncio.Semaphore(MAX_CHECKS)
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether no further check may wait: one that waits holds a connection that the console does not close."""
        return self._count >= MAX_CHECKS + MAX_WAITING_CHECKS

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a place, and keep it until the block ends."""
        self._count += 1
        try:
            async with self._running:
                yield
        finally:
            self._count -= 1


async def browse(request: Request) -> Response:
    """One page of a set, with what it covers."""
    view, _ = await find_model(request)
    asked = pb.ListGoldenItemsRequest(model=view.name, page_size=PAGE, page_token=request.query_params.get("from", ""))
    found: pb.ListGoldenItemsResponse = await console_of(request).upstream.ask_updater("ListGoldenItems", asked)
    unseen = min(1.0, _RULE_OF_THREE / found.total_expected) if found.total_expected else 1.0
    return render(request, "golden.html", view=view, found=found, unseen=unseen)


async def picture(request: Request) -> Response:
    """The picture of an item. Its type is that of its content, so that a browser never takes it for a page."""
    asked = pb.GetGoldenPictureRequest(model=request.path_params["model"], item=request.query_params.get("item", ""))
    found: pb.GetGoldenPictureResponse = await console_of(request).upstream.ask_updater("GetGoldenPicture", asked)
    kind = find_kind(found.content) or "application/octet-stream"
    return Response(found.content, media_type=kind, headers={"cache-control": "private, max-age=60"})


async def add(request: Request) -> Response:
    """Add what was tried, with the answer that should have come."""
    view, most = await find_model(request)
    require_operator(request)  # before so much is read
    form = await read_form(request, most * 2)
    lines = [line.strip() for line in text_of(form, "texts").splitlines() if line.strip()]
    chosen = [value for value in form.getlist("expected") if isinstance(value, str)]
    if len(chosen) != len(lines) or not all(chosen):
        raise FormRefused("choose the right answer to each question")
    item = pb.GoldenItem(
        item=text_of(form, "name").strip(), texts=lines, expected=chosen, premise=text_of(form, "premise").strip()
    )
    content = await read_picture(request, form, view) if view.is_entailment else b""
    wanted = pb.AddGoldenItemRequest(model=view.name, item=item, picture=content)
    wanted.operator.name, wanted.operator.reason = require_operator(request), text_of(form, "reason")[:200]
    added: pb.AddGoldenItemResponse = await console_of(request).upstream.ask_updater(
        "AddGoldenItem", wanted, COMMAND_SECONDS
    )
    return render(request, "_added.html", view=view, added=added)


async def check(request: Request) -> Response:
    """The page of a check, which runs while it is shown."""
    view, _ = await find_model(request)
    return render(request, "check.html", view=view)


async def run_check(request: Request) -> Response:
    """Ask the live model every item, one at a time, and stream how far it is.

    A page elsewhere can make a browser load an address of ours: the token keeps it from beginning a check.
    """
    check_csrf(request, request.query_params.get(CSRF_FIELD, ""))
    console, places = console_of(request), cast("CheckPlaces", request.app.state.check_places)
    view, _ = await find_model(request)
    items = [item async for item in list_golden_items(console_of(request).upstream, view.name)]
    if places.is_full:
        return PlainTextResponse("too many checks wait; this one begins later\n", 503)

    async def events() -> AsyncIterator[str]:
        progress = CheckProgress(len(items), wrong=[])
        if places.is_full:  # others began since then; the browser connects again
            return
        async with places.take():
            for item in items:
                if not console.sessions.is_valid(session_of(request)):
                    break
                await _check_item(request, view, item, progress)
                progress.done += 1
                if progress.done % 5 == 0 or progress.done == progress.total:
                    html = render_part(request, "_check.html", view=view, progress=progress)
                    lines = "".join(f"data: {line}\n" for line in html.splitlines())
                    yield f"event: check\n{lines}\n"
        yield "event: end\ndata: end\n\n"

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def _check_item(request: Request, view: ModelView, item: pb.GoldenItem, progress: CheckProgress) -> None:
    try:
        answers = await _ask_item(request, view, item)
    except CallFailed:
        progress.failed += len(item.texts)
        return
    for text, expected, answer in zip(item.texts, item.expected, answers, strict=False):
        progress.judged += 1
        if expected == answer:
            progress.right += 1
        elif progress.wrong is not None and len(progress.wrong) < _SHOWN_WRONG:
            progress.wrong.append((item.item, text, expected, answer))


async def _ask_item(request: Request, view: ModelView, item: pb.GoldenItem) -> list[str]:
    """The live model's answers in the form of golden sets."""
    upstream = console_of(request).upstream
    if not view.is_entailment:
        tagged = await upstream.tag(address_pb2.PredictRequest(model=view.name, addresses=item.texts))
        return [
            format_parts(AddressPart(span.kind, span.text, span.start) for span in result.spans)
            for result in tagged.results
        ]
    asked = pb.GetGoldenPictureRequest(model=view.name, item=item.item)
    found: pb.GetGoldenPictureResponse = await upstream.ask_updater("GetGoldenPicture", asked)
    judged = await upstream.predict(
        entailment_pb2.PredictRequest(
            model=view.name,
            image=entailment_pb2.Image(content=found.content),
            statements=item.texts,
            premise=item.premise,
        )
    )
    return [entailment_pb2.Label.Name(row.label).removeprefix("LABEL_").lower() for row in judged.results]


async def export(request: Request) -> Response:
    """The set as a ZIP archive of `golden.jsonl` and its pictures, at most MAX_EXPORT_BYTES."""
    view, _ = await find_model(request)
    items = [item async for item in list_golden_items(console_of(request).upstream, view.name)]
    out, seen, lines = io.BytesIO(), 0, []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, item in enumerate(items, start=1):
            image = ""
            if item.has_picture:
                asked = pb.GetGoldenPictureRequest(model=view.name, item=item.item)
                found: pb.GetGoldenPictureResponse = await console_of(request).upstream.ask_updater(
                    "GetGoldenPicture", asked
                )
                seen += len(found.content)
                if seen > MAX_EXPORT_BYTES:
                    raise FormRefused("the golden set is too large to export: copy its folder", 413, _EXPORT_LIMIT)
                kind = find_kind(found.content) or "image/bin"
                image = f"{number:05d}.{kind.rpartition('/')[2]}"
                archive.writestr(image, found.content)
            lines.append(format_item(_to_item(item, image, view)))
        archive.writestr("golden.jsonl", "".join(lines))
    headers = {"content-disposition": f'attachment; filename="golden-{view.number}.zip"'}
    return Response(out.getvalue(), media_type="application/zip", headers=headers)


def _to_item(item: pb.GoldenItem, image: str, view: ModelView) -> GoldenItem:
    texts, expected = tuple(item.texts), tuple(item.expected)
    if view.is_entailment:
        return GoldenItem(item.item, image, item.premise, statements=texts, expected=expected)
    return GoldenItem(item.item, addresses=texts, expected=expected)


async def import_items(request: Request) -> Response:
    """Add the items of such an archive; those whose names are taken stay as they are."""
    view, _ = await find_model(request)
    require_operator(request)  # before so much is read
    form = await read_form(request, MAX_EXPORT_BYTES)
    hold_memory(request, MAX_EXPORT_BYTES)  # for what it unpacks to
    counts: Counter[str] = Counter()
    for item, content in await asyncio.to_thread(_read_archive, await picture_of(form, "archive"), view):
        expected = list(item.expected)
        wanted = pb.AddGoldenItemRequest(
            model=view.name,
            item=pb.GoldenItem(item=item.item, texts=item.texts, premise=item.premise, expected=expected),
            picture=content,
        )
        wanted.operator.name, wanted.operator.reason = require_operator(request), "imported"
        try:
            await console_of(request).upstream.ask_updater("AddGoldenItem", wanted, COMMAND_SECONDS)
        except CallFailed as error:
            if error.reason != "ITEM_EXISTS":
                raise
            counts["known"] += 1
        else:
            counts["added"] += 1
    query = f"added={counts['added']}&known={counts['known']}"
    return redirect(request, f"/golden/{view.name}?{query}")


def _read_archive(content: bytes, view: ModelView) -> list[tuple[GoldenItem, bytes]]:
    """The items of an archive, with their pictures.

    What the archive says of itself (numbers of entries, sizes) is not believed: it is read in bounded steps.

    Raises:
        FormRefused: it is no such archive, or unpacks to too much.
    """
    # zipfile makes an object of each entry when it opens an archive; each begins with this mark, or is refused there.
    if (entries := content.count(_ENTRY_MARK)) > 2 * MAX_IMPORT_ITEMS:
        raise FormRefused("the archive is too large", 413, f"{entries} > {2 * MAX_IMPORT_ITEMS} entries")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            lines = _unpack(archive, SET_NAME, MAX_SET_BYTES).decode("utf-8")
            if lines.count("\n") > 2 * MAX_IMPORT_ITEMS:
                raise FormRefused("the archive is too large", 413, f"> {MAX_IMPORT_ITEMS} items")
            task = Task.VISUAL_ENTAILMENT if view.is_entailment else Task.ADDRESS_TAGGING
            items = parse(lines, task.value).items
            if len(items) > MAX_IMPORT_ITEMS:
                raise FormRefused("the archive is too large", 413, f"{len(items)} > {MAX_IMPORT_ITEMS} items")
            found, left = [], MAX_EXPORT_BYTES - len(lines)
            for item in items:  # an archive may have one large picture, and name it in each item
                picture = _unpack(archive, item.image, left) if item.image else b""
                left -= len(picture)
                found.append((item, picture))
            return found
    except _DAMAGED as error:
        raise FormRefused("the file is no ZIP archive of golden.jsonl and its pictures") from error
    except GoldenBroken as error:
        raise FormRefused("golden.jsonl in the archive cannot be used", 400, str(error)) from error


def _unpack(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """An entry's content; takes little more memory than `most`, whatever the entry says of its size."""
    info = archive.getinfo(name)
    if info.compress_type not in _BOUNDED_METHODS:
        raise zipfile.BadZipFile(f"compression method {info.compress_type}")
    found = bytearray()
    with archive.open(info) as entry:
        while part := entry.read(_STEP_BYTES):
            found += part
            if len(found) > most:
                raise FormRefused("the archive is too large", 413, _EXPORT_LIMIT)
    return bytes(found)
