"""`hotslot token …`: makes, lists and revokes tokens in the file that the server reads."""

import json
from pathlib import Path

from common.tokens import load_tokens
from tests.cli.conftest import Hotslot

SETTINGS = '[[models]]\nname = "shapes"\n[server]\ntokens_file = "tokens"\n'


def test_a_token_is_printed_once_and_its_hash_kept(hotslot: Hotslot, tmp_path: Path) -> None:
    """Standard output has the token alone, for a file; the settings name the file of hashes."""
    (tmp_path / "hotslot.toml").write_text(SETTINGS)

    made = hotslot("token", "new", "shop-backend")

    token = made.out.strip()
    assert (made.code, load_tokens(tmp_path / "tokens").find(token)) == (0, "shop-backend")
    assert token not in (tmp_path / "tokens").read_text()
    assert "it is not shown again" in made.err


def test_a_token_is_replaced_without_a_gap(hotslot: Hotslot, tmp_path: Path) -> None:
    """Two are valid until the old one is revoked by its id; a name revokes all of a caller."""
    options = ("--file", str(tmp_path / "tokens"))
    old = hotslot("token", "new", "shop", *options).out.strip()
    (row,) = json.loads(hotslot("token", "list", "--json", *options).out)
    new = hotslot("token", "new", "shop", *options).out.strip()
    assert hotslot("token", "list", *options).out.count("shop") == 2

    assert hotslot("token", "revoke", row["id"], *options).code == 0

    tokens = load_tokens(tmp_path / "tokens")
    assert (tokens.find(old), tokens.find(new)) == ("", "shop")
    assert hotslot("token", "revoke", "shop", *options).code == 0
    assert load_tokens(tmp_path / "tokens").names == ()


def test_what_is_wrong_is_one_sentence(hotslot: Hotslot, tmp_path: Path) -> None:
    """A name with a blank, settings without a file, an unknown token, a broken file."""
    (tmp_path / "hotslot.toml").write_text('[[models]]\nname = "shapes"\n')
    (tmp_path / "broken").write_text("what is this\n")
    cases = {
        "is no name": ("new", "two words", "--file", "tokens"),
        "the settings name no tokens_file": ("new", "shop"),
        "cannot be read": ("list", "--file", "nowhere"),
        "line 1 of the tokens file": ("new", "shop", "--file", "broken"),
    }
    for sentence, words in cases.items():
        ended = hotslot("token", *words)
        assert (ended.code != 0, sentence in ended.err) == (True, True), ended.err
    hotslot("token", "new", "shop", "--file", "tokens")
    assert "has no token bank" in hotslot("token", "revoke", "bank", "--file", "tokens").err
