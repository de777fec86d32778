"""Recognises contents whose source digest an earlier build computed over fewer files. Pure.

Such digests are in the quarantine and among the known versions. When a poll lists the content under its new digest, the
record takes that over; otherwise the rule change would cause an alarm or another attempt.
"""

from dataclasses import replace

from updater.core.facts import Release
from updater.core.record import ModelRecord
from updater.core.rules import ReleasePolicy
from updater.core.versions import parse_version


def adopt_present_digests(record: ModelRecord, releases: tuple[Release, ...], policy: ReleasePolicy) -> ModelRecord:
    """The record with the present digests of listed contents that an earlier build recorded."""
    found = [release for release in releases if release.source_digest and release.former_digest in record.former]
    present = {release.source_digest for release in releases}  # a content without the added files keeps its digest
    found = [release for release in found if release.former_digest not in present]
    if not found:
        return record
    quarantined = {row.revision for row in record.quarantine}
    found.sort(key=lambda release: release.revision not in quarantined)  # the same name first
    digests: dict[str, str] = {}
    for release in found:
        digests.setdefault(release.former_digest, release.source_digest)
    record = replace(
        _adopt_known(record, found, policy),
        quarantine=tuple(
            replace(row, source_digest=digests.get(row.source_digest, row.source_digest)) for row in record.quarantine
        ),
        replaced=tuple(
            replace(row, source_digest=digests.get(row.source_digest, row.source_digest)) for row in record.replaced
        ),
        unquarantined=tuple(digests.get(one, one) for one in record.unquarantined),
        approved=tuple(digests.get(one, one) for one in record.approved),
    )
    return replace(record, former=tuple(one for one in record.former if one in record.recorded_digests))


def _adopt_known(record: ModelRecord, found: list[Release], policy: ReleasePolicy) -> ModelRecord:
    """Known versions are adopted by version: two of them may differ in the added files alone."""
    digests = {}
    for release in found:
        version = parse_version(release.revision, policy)
        if version is not None:
            digests[version.text, release.former_digest] = release.source_digest
    rows = (
        replace(row, source_digest=digests.get((row.version, row.source_digest), row.source_digest))
        for row in record.known
    )
    return replace(record, known=tuple(rows))
