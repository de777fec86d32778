"""A hub with ModelScope's protocol: revisions, listings and files of one model.

GET /api/v1/models/OWNER/NAME/revisions                              tags and branches
GET /api/v1/models/OWNER/NAME/repo/files?Revision=&Recursive=True    names, sizes, SHA-256
GET /api/v1/models/OWNER/NAME/repo?Revision=&FilePath=               a file, with Range

A revision is identified by the hashes in its listing: a tag or branch that was moved is recognised by them. Some hubs
also send the commit of a listing (`LatestCommitter`), which is kept for people.

`repo/files` ends after LISTING_LIMIT rows without saying so, and has no pages. A recursive listing that long is
replaced by that of the top folder, where all files of a model are; if that is as long, it is not trusted.
`revisions` is requested in pages; a hub that ignores them sends all.
Which parts of the hub's own client library are used: docs/explanation/decisions/modelscope-hub.md.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from modelscope_hub.constants import DEFAULT_ENDPOINT, LEGACY_API_PREFIX, REPO_FILES_TRUNCATION_LIMIT

from common.bundle import BundleFile, HubKind, HubLocation
from common.clock import Clock
from common.engine_files import MAX_CONFIG_BYTES
from common.json_load import load_json
from common.source import MAX_FILE_BYTES, is_revision_name
from updater.core.effects import FailureKind
from updater.core.facts import Release
from updater.core.ports import EffectFailed, Skipped
from updater.core.versions import is_commit_id
from updater.hub.client import (
    HubErrorResponse,
    HubHttpClient,
    HubHttpOptions,
    HubResponse,
    build_protocol_error,
    classify_response,
)
from updater.hub.settings import TokenReader, find_proxy
from updater.revision import IncompleteFile, UnsupportedRevision, describe_release
from updater.settings import UpdaterSection, normalize_endpoint

MAX_ANSWER_BYTES = 8 << 20  # of a listing
MAX_ERROR_BYTES = 64 << 10
MAX_REVISIONS = 10_000
PAGE_SIZE = 1000
LISTING_LIMIT = REPO_FILES_TRUNCATION_LIMIT  # rows of a listing of files
MAX_CACHED = 64  # files, by hash
MAX_CACHED_BYTES = 256 << 10  # of one file
_RANGE_NOT_SATISFIABLE = 416
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
T = TypeVar("T")
_HTML_STARTS = (b"<!doctype html", b"<html")


class ModelScopeHub:
    """The port `Hub` for one model. Reads only, from one thread."""

    def __init__(self, client: HubHttpClient, model: str, clock: Clock, is_release: Callable[[str], bool]) -> None:
        """Send nothing yet.

        Args:
            client: of the hub.
            model: OWNER/NAME.
            clock: for deadlines, and dates of Retry-After.
            is_release: whether a name looks like a release. A branch with such a name is hidden, since only tags are
                releases and a branch can be moved. Other branches are listed: an operator may request one.
        """
        self.place = HubLocation(HubKind.MODELSCOPE, model, client.host)
        self._client = client
        self._path = f"{LEGACY_API_PREFIX}/models/{quote(model)}"
        self._clock = clock
        self._is_release = is_release
        self._small: dict[str, bytes] = {}  # content of small files, by hash
        self._complete: dict[str, None] = {}  # hashes of files known to be complete, oldest first

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Names of all tags, and of the branches that do not look like a release; sorted."""
        tags, branches = self.tags_and_branches(deadline_seconds)
        return tuple(sorted({*tags, *(name for name in branches if not self._is_release(name))}))

    def tags_and_branches(self, deadline_seconds: float) -> tuple[list[str], list[str]]:
        """Names of all tags and of all branches."""
        ends = self._clock.monotonic() + deadline_seconds
        tags: dict[str, None] = {}
        branches: dict[str, None] = {}
        before: Mapping[str, Any] = {}
        for page in count(1):
            found, total = self._get_revisions(page, max(0.0, ends - self._clock.monotonic()))
            tags |= dict.fromkeys(_names(found, "Tags"))
            branches |= dict.fromkeys(_names(found, "Branches"))
            size = max(len(tags) + len(branches), total, (page - 1) * PAGE_SIZE)
            if size > MAX_REVISIONS:
                raise EffectFailed.denied("HUB_TOO_LARGE", f"the hub has {size} revisions of this model")
            # A page without new names is no end: what is on it may be unfinished, or no valid name. Without a total, a
            # full page is followed by another one, unless the hub repeats itself because it has no pages.
            is_last = page * PAGE_SIZE >= total if total else _count_rows(found) < PAGE_SIZE or found == before
            if is_last:
                return list(tags), list(branches)
            before = found
        raise RuntimeError("a hub has no last page")

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """List one revision, and check that the last byte of each declared file can be read."""
        ends = self._clock.monotonic() + deadline_seconds
        if not is_revision_name(revision):
            raise _build_unknown_error(revision)
        query = urlencode({"Revision": revision, "Recursive": "True"})
        try:
            data = self._get_data(f"{self._path}/repo/files?{query}", deadline_seconds)
        except EffectFailed as error:
            if error.failure.kind is not FailureKind.NOT_READY:
                raise
            raise self._explain_missing_listing(revision, ends) from error
        rows = _rows_of(data)
        if len(rows) >= LISTING_LIMIT:
            query = urlencode({"Revision": revision, "Recursive": "False"})
            left = max(0.0, ends - self._clock.monotonic())
            rows = _rows_of(self._get_data(f"{self._path}/repo/files?{query}", left))
        if len(rows) >= LISTING_LIMIT:
            missing = f"the hub ends listings after {LISTING_LIMIT} files, so that this one may be incomplete"
            return Release(revision, (), "", is_ready=False, missing=missing, commit_id=_commit_of(data))
        listed = [file for row in rows if (file := _parse_file(row)) is not None]

        def read(file: BundleFile) -> bytes:
            return self._read_small(revision, file, ends)

        release = describe_release(revision, listed, read, lambda file: self._describe_missing(revision, file, ends))
        return replace(release, commit_id=_commit_of(data))

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The bytes of one file from an offset on; if the hub ignores Range, earlier bytes are skipped."""
        query = urlencode({"Revision": revision, "FilePath": name})
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._client.get(f"{self._path}/repo?{query}", deadline_seconds, headers) as response:
            to_skip = self._count_bytes_to_skip(response, name, offset)
            is_first = not offset
            for piece in response.pieces():
                if is_first and piece.lstrip().lower().startswith(_HTML_STARTS):
                    raise build_protocol_error(f"{response.host} sent a web page instead of {name}")
                is_first = False
                skipped = min(to_skip, len(piece))
                if skipped:
                    yield Skipped.of(skipped)
                    to_skip -= skipped
                if skipped < len(piece):
                    yield piece[skipped:]

    def _get_revisions(self, page: int, deadline_seconds: float) -> tuple[Mapping[str, Any], int]:
        """One page of tags and branches, and the number of all; 0 if the hub has no pages."""
        query = urlencode({"PageNumber": page, "PageSize": PAGE_SIZE})
        try:
            data = self._get_data(f"{self._path}/revisions?{query}", deadline_seconds)
        except EffectFailed as error:
            if error.failure.kind is not FailureKind.NOT_READY:
                raise
            sentence = "the hub has no such model, or shows it only with a token: updater.hub_token_…"
            raise EffectFailed.denied("MODEL_UNKNOWN", sentence) from error
        found, total = data.get("RevisionMap"), data.get("TotalCount")
        if not isinstance(found, Mapping):
            raise build_protocol_error("the hub sent a list of revisions in an unknown format")
        return found, total if type(total) is int else 0

    def _count_bytes_to_skip(self, response: HubResponse, name: str, offset: int) -> int:
        """Number of bytes in the response before the requested offset.

        Raises:
            EffectFailed: the response does not contain the file.
        """
        if offset and response.status == _RANGE_NOT_SATISFIABLE:
            raise EffectFailed.not_ready("FILE_SHORT", f"{name} has only {offset} bytes yet")
        if not response.is_good:
            failed = self._read_error(response)
            if failed.failure.kind is FailureKind.NOT_READY:
                raise EffectFailed.not_ready("FILE_MISSING", f"{name} is not there yet")
            raise failed
        if _is_html(response):
            raise build_protocol_error(f"{response.host} sent a web page instead of {name}")
        if not response.is_partial:
            return offset
        part = _RANGE.fullmatch(response.header("content-range"))
        if part is None or int(part[1]) != offset:
            raise build_protocol_error(f"{response.host} sent a different range of {name} than requested")
        return 0

    def _get_data(self, target: str, deadline_seconds: float) -> Mapping[str, Any]:
        """The field `Data` of a response. A good status with "Success": false is an error."""
        with self._client.get(target, deadline_seconds, {"Accept": "application/json"}) as response:
            if not response.is_good:
                raise self._read_error(response)
            if _is_html(response):
                raise build_protocol_error(f"{response.host} sent a web page instead of JSON")
            row = _parse_json(response.read(MAX_ANSWER_BYTES))
            data = row.get("Data") if isinstance(row, Mapping) else None
            if isinstance(row, Mapping) and row.get("Success") is False:
                raise self._classify(response, row)
        if not isinstance(data, Mapping):
            raise build_protocol_error("the hub sent a response in an unknown format")
        return data

    def _read_error(self, response: HubResponse) -> EffectFailed:
        """Read and classify an error response."""
        body = _parse_json(response.read(MAX_ERROR_BYTES)) if response.is_home and not _is_html(response) else None
        return self._classify(response, body)

    def _classify(self, response: HubResponse, body: object) -> EffectFailed:
        error = HubErrorResponse(response.status, response.headers, body)
        return classify_response(error, self._clock.now(), is_home=response.is_home)

    def _explain_missing_listing(self, revision: str, ends: float) -> EffectFailed:
        """NOT_READY if the hub still names the revision: a broken hub may deny every listing. Otherwise PERMANENT."""
        if revision in self.revisions(max(0.0, ends - self._clock.monotonic())):
            message = f"the hub names {revision} but does not list its files"
            return EffectFailed.not_ready("NOT_LISTED", message)
        return _build_unknown_error(revision)

    def _describe_missing(self, revision: str, file: BundleFile, ends: float) -> str:
        """What is missing of a file, for people; empty if it is complete. Complete files are not checked again."""
        if not 0 < file.size <= MAX_FILE_BYTES or file.sha256 in self._complete:
            return ""  # an invalid listing does not become valid by waiting; staging refuses it
        query = urlencode({"Revision": revision, "FilePath": file.name})
        headers = {"Range": f"bytes={file.size - 1}-"}
        left = max(0.0, ends - self._clock.monotonic())
        with self._client.get(f"{self._path}/repo?{query}", left, headers) as response:
            try:
                self._count_bytes_to_skip(response, file.name, file.size - 1)
            except EffectFailed as error:
                if error.failure.kind is FailureKind.NOT_READY:
                    return error.failure.message
                raise
            size = response.header("content-length")
        if not response.is_partial and size.isdecimal() and int(size) < file.size:
            return f"{file.name} has {size} of {file.size} bytes"
        if file.sha256:
            self._complete = _cache(self._complete, file.sha256, None)
        return ""

    def _read_small(self, revision: str, file: BundleFile, ends: float) -> bytes:
        """The content of a file that determines the declared files."""
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
            if error.failure.kind is FailureKind.NOT_READY:
                raise IncompleteFile(error.failure.message) from error
            raise
        if len(content) < file.size:
            raise IncompleteFile(f"{file.name} has {len(content)} of {file.size} bytes")
        if file.sha256:
            self._keep_small(file, bytes(content))
        return bytes(content)

    def _keep_small(self, file: BundleFile, content: bytes) -> None:
        """Check the content of a small file, and keep it for the next listing."""
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UnsupportedRevision("CONTENT_MISMATCH", f"{file.name} does not have the listed hash")
        if file.size <= MAX_CACHED_BYTES:
            self._small = _cache(self._small, file.sha256, content)


def open_hub(section: UpdaterSection, model: str, clock: Clock, is_release: Callable[[str], bool]) -> ModelScopeHub:
    """Create the hub of one model; nothing is sent yet.

    Args:
        section: `[updater]`.
        model: OWNER/NAME.
        clock: for deadlines.
        is_release: whether a name looks like a release.
    """
    options = HubHttpOptions(
        endpoint=section.hub_endpoint or normalize_endpoint(DEFAULT_ENDPOINT),
        private_hosts=frozenset(host.lower() for host in section.hub_private_hosts),
        ca_file=section.hub_ca_file,
        certificate_file=section.hub_certificate_file,
        key_file=section.hub_key_file,
        connect_seconds=section.hub_connect_seconds,
        stall_seconds=section.hub_stall_seconds,
    )
    token = TokenReader(section.hub_token_file, section.hub_token_variable)
    return ModelScopeHub(HubHttpClient(options, clock, token, find_proxy), model, clock, is_release)


def _cache(known: dict[str, T], key: str, value: T) -> dict[str, T]:
    """The cache with one more entry; the oldest is evicted."""
    return {**dict(list(known.items())[1 - MAX_CACHED :]), key: value}


def _names(found: Mapping[str, Any], kind: str) -> list[str]:
    """Valid revision names of one kind, "Tags" or "Branches"; the kind may be missing."""
    rows = found.get(kind)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise build_protocol_error("the hub sent a list of revisions in an unknown format")
    names = [row.get("Revision") for row in rows if isinstance(row, Mapping)]
    return [name for name in names if isinstance(name, str) and is_revision_name(name)]


def _count_rows(found: Mapping[str, Any]) -> int:
    """The number of all rows on a page of revisions, with those whose names are not valid."""
    return sum(len(rows) for rows in (found.get("Tags"), found.get("Branches")) if isinstance(rows, list))


def _rows_of(data: Mapping[str, Any]) -> list[object]:
    """The rows of a listing of files."""
    rows = data.get("Files")
    if not isinstance(rows, list):
        raise build_protocol_error("the hub sent a list of files in an unknown format")
    return rows


def _commit_of(data: Mapping[str, Any]) -> str:
    """The commit id of a listing, or its first digits; empty if the hub does not say."""
    latest = data.get("LatestCommitter")
    found = [latest.get(key) for key in ("Id", "ShortId")] if isinstance(latest, Mapping) else []
    return next((text.lower() for text in found if isinstance(text, str) and is_commit_id(text.lower())), "")


def _parse_file(row: object) -> BundleFile | None:
    """The file of one listing entry; None for a folder."""
    if not isinstance(row, Mapping):
        raise build_protocol_error("the hub sent a list of files in an unknown format")
    if row.get("Type") == "tree":
        return None
    name, size, sha256 = row.get("Path"), row.get("Size"), row.get("Sha256") or ""
    if not isinstance(name, str) or type(size) is not int or not isinstance(sha256, str):
        raise build_protocol_error("the hub lists a file without a name or size")
    return BundleFile(name, size, sha256.lower())


def _parse_json(body: bytes) -> object:
    """The parsed body; None if it is not JSON."""
    try:
        return load_json(body, takes_halves=True)  # a name with one must not hide all other files and revisions
    except ValueError:
        return None


def _is_html(response: HubResponse) -> bool:
    return response.header("content-type").lower().startswith("text/html")


def _build_unknown_error(revision: str) -> EffectFailed:
    message = f"the hub has no revision {revision[:80]!r}"
    return EffectFailed.permanent("REVISION_UNKNOWN", message)
