"""Names of versions and contents."""

import pytest

from common.versions import explain_no_version, parse_semver, sort_newest_first
from updater.core.effects import Listed, PollHub
from updater.core.facts import Release
from updater.core.rules import ReleasePolicy
from updater.core.versions import is_meant
from updater.stages.choice import find_meant, select_names

DIGESTS = ("sha256:1a2b3c4d" + "0" * 56, "sha256:1a2b3c4e" + "0" * 56)


@pytest.mark.fault("H3")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v1.0", "1.0.0"),
        ("V1.0.1", "1.0.1"),
        ("0.1", "0.1.0"),
        ("v1.0-beta.2", "1.0.0-beta-2"),
        ("1.0+cu121", "1.0.0+cu121"),
        ("v1", ""),
        ("1.0.0.1", ""),
        ("01.0", ""),
        ("1.00", ""),
        ("1.\u0660", ""),
        ("\uff11.0", ""),
        ("1." + "9" * 19, ""),
        ("vv1.0", ""),
        ("v2-test", ""),
        ("1.0_1", ""),
        ("1.0+", ""),
    ],
)
def test_a_name_is_a_version_or_not(name: str, text: str) -> None:
    """Two parts are three; four parts, leading zeros and other digits are no version."""
    version = parse_semver(name)
    assert ("" if version is None else version.text) == text


@pytest.mark.fault("H3")
def test_it_is_told_why_a_name_is_no_version() -> None:
    """For names that look like one."""
    names = ("v1", "1.0.0.1", "01.0", "1.\u0660", "1.0+", "master", "v1.0")
    told = [explain_no_version(name) for name in names]
    assert [row.split(" ")[0] for row in told] == ["it", "it", "a", "its", "what", "", ""]


def test_a_hub_lists_the_newest_version_first() -> None:
    """1.10 before 1.9; what is no version comes last."""
    names = ["v1.9", "master", "v1.10", "1.10.1", "v1.10-rc.1"]
    assert sort_newest_first(names) == ["1.10.1", "v1.10", "v1.10-rc.1", "v1.9", "master"]


@pytest.mark.fault("H2")
@pytest.mark.parametrize(
    ("given", "is_it"),
    [
        ("master@1a2b3c4d", True),
        ("master@1a2b", True),
        ("main@1a2b", False),
        ("1a2b3c4d", True),
        ("1A2B", True),
        ("sha256:1a2b3c", True),
        (DIGESTS[0], True),
        ("5e8c4ac9", True),
        ("5e8c4ac9d1", True),
        ("1a2", False),
        ("1a2c", False),
        ("master", False),
        ("", False),
    ],
)
def test_a_content_is_named_by_digest_or_commit(given: str, is_it: bool) -> None:  # noqa: FBT001  a table
    """Whole, or by a prefix of at least four digits."""
    assert is_meant(given, "master@1a2b3c4d", DIGESTS[0], "5e8c4ac9d1") is is_it


@pytest.mark.fault("H2")
def test_an_ambiguous_prefix_means_several_contents() -> None:
    """The operator has to give more digits; the same content under two names is one."""
    rows = [("v1.0", DIGESTS[0]), ("v1.1", DIGESTS[1]), ("v1.2", DIGESTS[1])]
    listed = Listed(("v1.0", "v1.1", "v1.2"), tuple(Release(name, (), digest) for name, digest in rows))

    assert [row.revision for row in find_meant("1a2b3c4", listed)] == ["v1.0", "v1.1"]
    assert [row.revision for row in find_meant("1a2b3c4e", listed)] == ["v1.1"]
    assert find_meant("1a2b3c4f", listed) == []


@pytest.mark.fault("H2")
def test_a_digest_is_looked_for_among_branches_and_releases() -> None:
    """Old releases too: the minimal version is compared when its name is known."""
    look = PollHub(ReleasePolicy(), "1.1.0", "1.1.0", only="1a2b3c4d")

    assert select_names(["v1.0", "v1.1", "dev", "master"], look) == ("master", "dev", "v1.1", "v1.0")
    assert select_names(["v1.0", "1a2b3c4d"], look) == ("1a2b3c4d",)
