"""Bearer tokens: their file, and whose a token is."""

from pathlib import Path

import pytest

from common.reload import FileUnusable
from common.tokens import (
    load_tokens,
    make_entry,
    make_token,
    parse_bearer,
    parse_tokens,
    read_token,
    watch_tokens,
    write_tokens,
)
from tests.common.clock import KeptLog, SimClock


def test_a_token_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    """The file does not have the token; two tokens of a caller are both valid."""
    path, (one, two) = tmp_path / "tokens", (make_token(), make_token())
    write_tokens(path, added=make_entry("shop", one, "2026-11-28"))
    write_tokens(path, added=make_entry("shop", two, "2026-11-29"))

    tokens = load_tokens(path)

    assert (tokens.find(one), tokens.find(two), tokens.find(make_token()), tokens.find("")) == ("shop", "shop", "", "")
    assert tokens.names == ("shop",)
    assert one not in path.read_text()
    assert len(one) == 51


def test_comments_and_other_lines_stay_when_a_token_is_removed(tmp_path: Path) -> None:
    """The file is an operator's."""
    path = tmp_path / "tokens"
    path.write_text("# callers of the shop\n\n")
    first, second = make_entry("shop", "a", "2026-01-01"), make_entry("shop", "b", "2026-01-02")
    write_tokens(path, added=first)
    write_tokens(path, added=second)
    write_tokens(path, removed=[first])
    assert path.read_text() == f"# callers of the shop\n\n{second}\n"


@pytest.mark.parametrize(
    "line", ["shop", "shop md5:00", "shop sha256:12", "a b sha256:" + "0" * 64, "shop hotslot_abc"]
)
def test_a_malformed_line_is_named_by_its_number(line: str) -> None:
    """Its content is not shown: it may be a token."""
    with pytest.raises(FileUnusable) as caught:
        parse_tokens(f"# first\n{line}\n")
    assert "line 2 of the tokens file" in str(caught.value)
    assert line not in str(caught.value)


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever writes it gives himself a token."""
    path = tmp_path / "tokens"
    path.touch()
    path.chmod(0o666)
    with pytest.raises(FileUnusable, match="every user of this machine may write the tokens file"):
        load_tokens(path)


def test_a_changed_file_is_used_and_a_broken_or_missing_one_is_not(tmp_path: Path) -> None:
    """A revoked token is refused within a second; an editor's half-written file locks no caller out."""
    path, log = tmp_path / "tokens", KeptLog()
    entry = make_entry("shop", "a", "2026-01-01")
    write_tokens(path, added=entry)
    watched = watch_tokens(path, log, SimClock())

    path.unlink()
    watched.check()
    watched.check()
    assert (watched.value.find("a"), log.events) == ("shop", ["tokens_refused"])
    assert "no such file" in watched.failure
    write_tokens(path, added=make_entry("bank", "b", ""))
    watched.check()
    assert (watched.value.find("a"), watched.value.find("b"), watched.failure) == ("", "bank", "")
    assert log.lines[-1] == ("tokens_loaded", {"tokens": 1, "callers": ["bank"]})


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  a.b-c_d~e+f/g==", "a.b-c_d~e+f/g=="),
        *((wrong, "") for wrong in ("Basic abc", "Bearer", "Bearer a b", "Bearer " + "a" * 5000, "abc", "Bearer ä")),
    ],
)
def test_a_bearer_header_is_read_as_rfc_6750_has_it(value: str, token: str) -> None:
    """The scheme in any case; nothing else."""
    assert parse_bearer(value) == token


def test_a_client_s_token_file_has_one_line(tmp_path: Path) -> None:
    """What is no token is refused before anything is sent."""
    path = tmp_path / "token"
    path.write_text("hotslot_abc\n")
    assert read_token(path) == "hotslot_abc"
    for content in ("", "two words", "ä"):
        path.write_text(content)
        with pytest.raises(FileUnusable, match="the token file has no token"):
            read_token(path)
    with pytest.raises(FileUnusable, match="cannot be read: no such file"):
        read_token(tmp_path / "none")
