"""`hotslot tag`: the parts of addresses in colour or as JSON."""

import json

from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import DIGEST, ScriptedServer


def test_parts_are_shown_below_each_address(hotslot: Hotslot, server: ScriptedServer) -> None:
    """The address, then a line a part: kind, text, probability; revision, device, slot and time follow."""
    ended = hotslot("tag", "浙江省 杭州[市]", "北京市", "--address", server.address, "--model", "addresses")

    assert ended.code == 0
    assert ended.out.splitlines()[:6] == [
        "浙江省 杭州[市]",
        "  prov  浙江省  87.5%",
        "  city  杭州[市]  50.0%",
        "",
        "北京市",
        "  prov  北京市  87.5%",
    ]
    assert "addresses v1.0.0 · cpu, slot a · computed in 12 ms · " in ended.out
    assert (server.tagged[0].model, list(server.tagged[0].addresses)) == ("addresses", ["浙江省 杭州[市]", "北京市"])


def test_json_has_spans_and_components(hotslot: Hotslot, server: ScriptedServer) -> None:
    """One document on one line, with places in code points and bytes."""
    ended = hotslot("tag", "浙江省 杭州", "--address", server.address, "--json")

    row = json.loads(ended.out)
    assert len(ended.out.splitlines()) == 1
    assert row["results"][0]["address"] == "浙江省 杭州"
    assert row["results"][0]["components"] == {"prov": "浙江省", "city": "杭州"}
    assert row["results"][0]["spans"][1] == {
        "kind": "city",
        "text": "杭州",
        "start": 4,
        "end": 6,
        "start_byte": 10,
        "end_byte": 16,
        "probability": 0.5,
    }
    assert (row["served_by"]["digest"], row["timing"]["computed_seconds"]) == (DIGEST, 0.012)


def test_a_refusal_says_what_to_do(hotslot: Hotslot, server: ScriptedServer) -> None:
    """An unknown model: exit code 1, reason, and the next step."""
    ended = hotslot("tag", "北京市", "--address", server.address, "--model", "nobody")

    assert ended.code == 1
    assert "MODEL_UNKNOWN" in ended.err
    assert "`hotslot status` lists the models" in ended.err
