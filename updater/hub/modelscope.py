"""ModelScope's hub, or whatever speaks its protocol: revisions, listings and files of one model.

GET /api/v1/models/OWNER/NAME/revisions                              tags and branches
GET /api/v1/models/OWNER/NAME/repo/files?Revision=&Recursive=True    names, sizes, SHA-256
GET /api/v1/models/OWNER/NAME/repo?Revision=&FilePath=               a file, with Range

No commit is named anywhere: a tag that was moved shows only in the hashes of its listing, which are its identity.
What of the hub's own client is used here and what is not: docs/explanation/decisions/modelscope-hub.md.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from modelscope_hub.constants import DEFAULT_ENDPOINT, LEGACY_API_PREFIX

from common.bundle import BundleFile, HubKind, HubLocation
from common.clock import Clock
from common.engine_files import MAX_CONFIG_BYTES
from common.source import MAX_FILE_BYTES, is_revision_name
from updater.core.ports import EffectFailed, Release
from updater.core.results import FaultKind
from updater.hub.client import HubHttpClient, HubHttpRules, HubResponse, Refusal, denied, not_understood, refusal_of
from updater.hub.settings import TokenSource, proxy_for
from updater.revision import IncompleteFile, UnsupportedRevision, describe_release
from updater.settings import UpdaterSection, checked_endpoint

MAX_ANSWER_BYTES = 8 << 20  # of a listing
MAX_ERROR_BYTES = 64 << 10
MAX_REVISIONS = 10_000
MAX_REMEMBERED = 64  # files, by their hash
MAX_REMEMBERED_BYTES = 256 << 10
_BEYOND_THE_END = 416
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
T = TypeVar("T")
_PAGE = (b"<!doctype html", b"<html")


class ModelScopeHub:
    """One model of a hub. Reads only, from one thread."""

    def __init__(self, client: HubHttpClient, model: str, clock: Clock, is_release: Callable[[str], bool]) -> None:
        """Ask nothing yet.

        Args:
            client: asks the hub.
            model: OWNER/NAME.
            clock: measures deadlines, and reads dates of a Retry-After.
            is_release: whether a name looks like a release. A branch that does is hidden: it could be moved to
                anything, and only tags are releases. Other branches are told, since a person may name one.
        """
        self.place = HubLocation(HubKind.MODELSCOPE, model, client.host)
        self._client = client
        self._path = f"{LEGACY_API_PREFIX}/models/{quote(model)}"
        self._clock = clock
        self._is_release = is_release
        self._small: dict[str, bytes] = {}  # what has a hash does not change: no look asks for it again
        self._there: dict[str, None] = {}  # hashes of files whose last byte was seen, in order

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Names of all tags, and of the branches that cannot be taken for one, sorted."""
        try:
            data = self._ask(f"{self._path}/revisions", deadline_seconds)
        except EffectFailed as error:
            if error.failed.kind is not FaultKind.NOT_READY:
                raise
            sentence = "the hub does not know this model, or shows it only with a token: updater.hub_token_…"
            raise denied("MODEL_UNKNOWN", sentence) from error
        found = data.get("RevisionMap")
        if not isinstance(found, Mapping):
            raise not_understood("the hub lists revisions in a form that is not known here")
        tags, branches = _names(found, "Tags"), _names(found, "Branches")
        if len(tags) + len(branches) > MAX_REVISIONS:
            raise denied("HUB_TOO_LARGE", f"the hub has {len(tags) + len(branches)} revisions of this model")
        return tuple(sorted({*tags, *(name for name in branches if not self._is_release(name))}))

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """List one revision, and see whether the last byte of each of its declared files is there."""
        ends = self._clock.monotonic() + deadline_seconds
        if not is_revision_name(revision):
            raise _unknown(revision)
        query = urlencode({"Revision": revision, "Recursive": "True"})
        try:
            data = self._ask(f"{self._path}/repo/files?{query}", deadline_seconds)
        except EffectFailed as error:
            if error.failed.kind is not FaultKind.NOT_READY:
                raise
            raise self._not_listed(revision, ends) from error
        rows = data.get("Files")
        if not isinstance(rows, list):
            raise not_understood("the hub lists files in a form that is not known here")
        listed = [file for row in rows if (file := _file_of(row)) is not None]

        def read(file: BundleFile) -> bytes:
            return self._read_small(revision, file, ends)

        return describe_release(revision, listed, read, lambda file: self._missing(revision, file, ends))

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The bytes of one file from an offset on; what a hub without Range sends before it is passed over."""
        query = urlencode({"Revision": revision, "FilePath": name})
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._client.get(f"{self._path}/repo?{query}", deadline_seconds, headers) as response:
            left = self._to_pass_over(response, name, offset)
            is_first = not offset
            for piece in response.pieces():
                if is_first and piece.lstrip().lower().startswith(_PAGE):
                    raise not_understood(f"{response.host} sends a web page for {name}")
                is_first = False
                if left < len(piece):
                    yield piece[left:]
                left = max(0, left - len(piece))

    def _to_pass_over(self, response: HubResponse, name: str, offset: int) -> int:
        """How many bytes of a file's answer come before the offset.

        Raises:
            EffectFailed: it is no answer with that file.
        """
        if offset and response.status == _BEYOND_THE_END:
            raise EffectFailed.not_ready("FILE_SHORT", f"{name} has no more than {offset} bytes yet")
        if not response.is_good:
            failed = self._refusal(response)
            if failed.failed.kind is FaultKind.NOT_READY:
                raise EffectFailed.not_ready("FILE_MISSING", f"{name} is not there yet")
            raise failed
        if _is_page(response):
            raise not_understood(f"{response.host} sends a web page for {name}")
        if not response.is_partial:
            return offset
        part = _RANGE.fullmatch(response.header("content-range"))
        if part is None or int(part[1]) != offset:
            raise not_understood(f"{response.host} sends another part of {name} than was asked for")
        return 0

    def _ask(self, target: str, deadline_seconds: float) -> Mapping[str, Any]:
        """`Data` of a good answer; an error that comes with a good status is an error."""
        with self._client.get(target, deadline_seconds, {"Accept": "application/json"}) as response:
            if not response.is_good:
                raise self._refusal(response)
            if _is_page(response):
                raise not_understood(f"{response.host} answers with a web page")
            row = _json(response.read(MAX_ANSWER_BYTES))
            data = row.get("Data") if isinstance(row, Mapping) else None
            if isinstance(row, Mapping) and row.get("Success") is False:
                raise refusal_of(
                    Refusal(response.status, response.headers, row), self._clock.now(), is_home=response.is_home
                )
        if not isinstance(data, Mapping):
            raise not_understood("the hub answers in a form that is not known here")
        return data

    def _refusal(self, response: HubResponse) -> EffectFailed:
        """What an answer that is no good means."""
        body = _json(response.read(MAX_ERROR_BYTES)) if response.is_home and not _is_page(response) else None
        return self._refused(response, body)

    def _refused(self, response: HubResponse, body: object) -> EffectFailed:
        refusal = Refusal(response.status, response.headers, body)
        return refusal_of(refusal, self._clock.now(), is_home=response.is_home)

    def _not_listed(self, revision: str, ends: float) -> EffectFailed:
        """Whether it is the revision that is unknown: a hub that has lost its mind says so of everything."""
        if revision in self.revisions(max(0.0, ends - self._clock.monotonic())):
            message = f"the hub names {revision} and does not list it"
            return EffectFailed.not_ready("NOT_LISTED", message)
        return _unknown(revision)

    def _missing(self, revision: str, file: BundleFile, ends: float) -> str:
        """What is not there yet of a file; empty if its last byte is. What was there once is not asked for again."""
        if not 0 < file.size <= MAX_FILE_BYTES or not file.sha256 or file.sha256 in self._there:
            return ""  # what is listed wrongly does not get better by waiting: staging says so
        query = urlencode({"Revision": revision, "FilePath": file.name})
        headers = {"Range": f"bytes={file.size - 1}-"}
        left = max(0.0, ends - self._clock.monotonic())
        with self._client.get(f"{self._path}/repo?{query}", left, headers) as response:
            try:
                self._to_pass_over(response, file.name, file.size - 1)
            except EffectFailed as error:
                if error.failed.kind is FaultKind.NOT_READY:
                    return error.failed.message
                raise
            size = response.header("content-length")
        if not response.is_partial and size.isdecimal() and int(size) < file.size:
            return f"{file.name} has {size} of {file.size} bytes"
        self._there = _remembered(self._there, file.sha256, None)
        return ""

    def _read_small(self, revision: str, file: BundleFile, ends: float) -> bytes:
        """A file that says which others count."""
        if file.size > MAX_CONFIG_BYTES:
            raise UnsupportedRevision("CONFIG_BROKEN", f"{file.name} has more than {MAX_CONFIG_BYTES} bytes")
        if file.sha256 in self._small:
            return self._small[file.sha256]
        content = bytearray()
        try:
            for piece in self.read(revision, file.name, 0, max(0.0, ends - self._clock.monotonic())):
                content += piece
                if len(content) > file.size:
                    break
        except EffectFailed as error:
            if error.failed.kind is FaultKind.NOT_READY:
                raise IncompleteFile(error.failed.message) from error
            raise
        if len(content) < file.size:
            raise IncompleteFile(f"{file.name} has {len(content)} of {file.size} bytes")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UnsupportedRevision("CONTENT_MISMATCH", f"{file.name} is not what is listed")
        if file.size <= MAX_REMEMBERED_BYTES:
            self._small = _remembered(self._small, file.sha256, bytes(content))
        return bytes(content)


def open_hub(section: UpdaterSection, model: str, clock: Clock, is_release: Callable[[str], bool]) -> ModelScopeHub:
    """The hub of one model; nothing is asked yet.

    Args:
        section: `[updater]`.
        model: OWNER/NAME.
        clock: measures.
        is_release: whether a name looks like a release.
    """
    rules = HubHttpRules(
        endpoint=section.hub_endpoint or checked_endpoint(DEFAULT_ENDPOINT),
        private_hosts=frozenset(host.lower() for host in section.hub_private_hosts),
        ca_file=section.hub_ca_file,
        connect_seconds=section.hub_connect_seconds,
        stall_seconds=section.hub_stall_seconds,
    )
    token = TokenSource(section.hub_token_file, section.hub_token_variable)
    return ModelScopeHub(HubHttpClient(rules, clock, token, proxy_for), model, clock, is_release)


def _remembered(known: dict[str, T], key: str, value: T) -> dict[str, T]:
    """One more, and the oldest goes."""
    return {**dict(list(known.items())[1 - MAX_REMEMBERED :]), key: value}


def _names(found: Mapping[str, Any], kind: str) -> list[str]:
    """Names of one kind that can be names of revisions; a hub that has none of a kind may leave it out."""
    rows = found.get(kind)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise not_understood("the hub lists revisions in a form that is not known here")
    names = [row.get("Revision") for row in rows if isinstance(row, Mapping)]
    return [name for name in names if isinstance(name, str) and is_revision_name(name)]


def _file_of(row: object) -> BundleFile | None:
    """One entry of a listing; None for a folder."""
    if not isinstance(row, Mapping):
        raise not_understood("the hub lists files in a form that is not known here")
    if row.get("Type") == "tree":
        return None
    name, size, sha256 = row.get("Path"), row.get("Size"), row.get("Sha256") or ""
    if not isinstance(name, str) or type(size) is not int or not isinstance(sha256, str):
        raise not_understood("the hub lists a file without name or size")
    return BundleFile(name, size, sha256.lower())


def _json(body: bytes) -> object:
    """A body that is JSON; None if it is not."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _is_page(response: HubResponse) -> bool:
    return response.header("content-type").lower().startswith("text/html")


def _unknown(revision: str) -> EffectFailed:
    message = f"the hub has no revision {revision[:80]!r}"
    return EffectFailed.permanent("REVISION_UNKNOWN", message)
