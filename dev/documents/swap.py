"""Draws what a caller saw of an update and a rollback: each call by time, its seconds and the revision that answered."""

import json
from typing import Any

from dev.documents.blocks import ROOT
from dev.documents.drawing import Picture

DATA = ROOT / "docs/pictures/swap.json"
PICTURE = ROOT / "docs/pictures/swap.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 330, 60, 20, 60, 50
TITLES = {"published": "published", "committed": "committed", "rollback": "rollback"}


def draw() -> str:
    """The picture of the recorded run."""
    data: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
    calls = [dict(zip(("at", "seconds", "revision"), row, strict=True)) for row in data["calls"]]
    end = max(call["at"] for call in calls) + 0.5
    highest = max(call["seconds"] for call in calls)
    picture = Picture("Answers by revision during an update and a rollback", WIDTH, HEIGHT)
    revisions = sorted({call["revision"] for call in calls})
    longest = round(1000 * highest)
    picture.add_text(
        WIDTH / 2,
        20,
        f"{len(calls)} calls, {data['failed']} failed, longest {longest} ms: {revisions[0]} (amber), {revisions[-1]} (green)",
        "title",
    )
    for call in calls:
        x = LEFT + (WIDTH - LEFT - RIGHT) * call["at"] / end
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * call["seconds"] / highest
        kind = "warm" if call["revision"] == revisions[0] else "good"
        picture.parts.append(f'<rect class="{kind}" x="{x - 2:.1f}" y="{y - 2:.1f}" width="4" height="4" rx="2"/>')
    for number, (name, at) in enumerate(data["marks"].items()):
        x = LEFT + (WIDTH - LEFT - RIGHT) * at / end
        picture.arrows.append(f'<path d="M{x:.0f} {TOP - 4} V{HEIGHT - BOTTOM}" stroke-dasharray="3 4"/>')
        picture.add_text(x, TOP - 8 - 12 * (number % 2), TITLES[name])
    for seconds in range(0, int(end) + 1, 10):
        picture.add_text(LEFT + (WIDTH - LEFT - RIGHT) * seconds / end, HEIGHT - BOTTOM + 20, f"{seconds} s")
    for share in (0, 0.5, 1):
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
        picture.add_text(LEFT - 28, y + 4, f"{1000 * highest * share:.0f} ms")
    return picture.render()
