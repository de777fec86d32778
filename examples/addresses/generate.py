"""Addresses with the habits of real ones: `python -m examples.addresses.generate --count 20` prints some.

People leave levels out, put the building before the road, mistype, write full-width digits, brackets and remarks, name
a shop in a mall, a village without numbers, a tower in English, and add a name or a phone number before or behind.
What is seen and what is unseen differ in districts, towns, villages, and in the names of roads and buildings.
"""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable, Iterator

from examples.addresses import words
from examples.addresses.divisions import District, read_divisions
from examples.addresses.layout import Address, Span

NOISE = ""  # the kind of what is no part of the address
Part = tuple[str, str]  # kind and text
_FULL_WIDTH = {ord(char): ord(char) + 0xFEE0 for char in "0123456789"}
_UNSEEN_SHARE = 5


def main() -> None:
    """Print addresses."""
    parser = argparse.ArgumentParser(description="Print generated addresses with their parts.")
    parser.add_argument("--count", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="other addresses with another number (default 0)")
    parser.add_argument("--unseen", action="store_true", help="of districts and names that no training sees")
    arguments = parser.parse_args()
    generator = generate(arguments.seed, is_unseen=arguments.unseen)
    for _ in range(arguments.count):
        address = next(generator)
        print(address.text, " ".join(f"{kind}={text}" for kind, text in address.parts()), sep="\t")


def generate(seed: int, *, is_unseen: bool) -> Iterator[Address]:
    """Addresses without end, the same for the same seed.

    Args:
        seed: any number.
        is_unseen: of the districts, towns, villages, roads and buildings that are kept from training.
    """
    writer = _Writer(random.Random(f"{seed}-{is_unseen}"), is_unseen=is_unseen)
    while True:
        yield join(writer.write())


def join(parts: list[Part]) -> Address:
    """The text of parts one after the other, with a span for each that is no noise."""
    text, spans = "", []
    for kind, piece in parts:
        if kind and piece:
            spans.append(Span(kind, len(text), len(text) + len(piece)))
        text += piece
    return Address(text, tuple(spans))


class _Writer:
    """Writes one address after the other."""

    def __init__(self, draw: random.Random, *, is_unseen: bool) -> None:
        self._draw = draw
        self._is_unseen = is_unseen
        self._districts = [one for one in read_divisions() if one.is_unseen is is_unseen]

    def write(self) -> list[Part]:
        """The parts of an address in the order in which they are written."""
        draw, district = self._draw, self._draw.choice(self._districts)
        above = self._divisions(district)
        body = draw.choices((self._street, self._village, self._mall, self._zone, self._spot), (46, 16, 14, 10, 14))[0]
        parts = above + body(district)
        if draw.random() < 0.05:
            parts = self._reorder(parts)
        return self._dress(parts)

    def _chance(self, share: float) -> bool:
        return self._draw.random() < share

    # Divisions.

    def _divisions(self, district: District) -> list[Part]:
        draw, parts = self._draw, []
        detail = draw.random()
        if self._chance(0.03):
            parts.append((NOISE, "中国"))
        if detail < 0.72:
            parts.append(("prov", self._shorten(district.province, ("省", "市", "自治区", "特别行政区"), 0.12)))
        if district.city and detail < 0.88:
            parts.append(("city", self._shorten(district.city, ("市",), 0.1)))
        elif not district.city and detail < 0.3 and district.province.endswith("市"):
            parts.append(("city", district.province))
        if detail < 0.95:
            can_be_short = len(district.name) > 2
            parts.append(("district", self._shorten(district.name, ("区", "县", "市"), 0.07 if can_be_short else 0)))
        if district.towns and self._chance(0.45):
            parts.append(("town", draw.choice(district.towns)))
        return parts

    def _shorten(self, name: str, endings: tuple[str, ...], share: float) -> str:
        if self._chance(share):
            for ending in endings:
                if name.endswith(ending) and len(name) > len(ending) + 1:
                    return name[: -len(ending)]
        return name

    # Bodies.

    def _street(self, district: District) -> list[Part]:
        parts = self._community(district, 0.12)
        if self._chance(0.88):
            parts.append(("road", self._road()))
            if self._chance(0.85):
                parts.append(("roadno", self._road_number()))
        building = [("poi", self._building())] if self._chance(0.72) or not parts else []
        if self._chance(0.07):
            parts = building + parts
        else:
            parts += building
        return parts + self._inside(0.75)

    def _village(self, district: District) -> list[Part]:
        parts = []
        if district.villages:
            parts.append(("community", self._draw.choice(district.villages)))
        else:
            parts.append(("community", self._name() + self._draw.choice(("村", "社区", "庄", "屯"))))
        if self._chance(0.6):
            number = self._draw.randint(1, 19)
            count = _chinese(number) if self._chance(0.4) else str(number)
            parts.append(("village_group", count + self._draw.choice(("组", "组", "队", "社", "村民小组"))))
        if self._chance(0.35):
            parts.append(("houseno", f"{self._draw.randint(1, 300)}号"))
        elif self._chance(0.35):
            parts += [("poi", self._name() + self._draw.choice(words.PLACES))]
            parts += self._beside(0.4)
        return parts

    def _mall(self, _district: District) -> list[Part]:
        parts = []
        if self._chance(0.6):
            parts.append(("road", self._road()))
            if self._chance(0.7):
                parts.append(("roadno", self._road_number()))
        parts.append(("poi", self._mall_name()))
        if self._chance(0.35):
            parts.append(("houseno", self._draw.choice("ABCDEF") + self._draw.choice(("座", "区", "馆", "栋"))))
        if self._chance(0.6):
            parts.append(("floorno", self._floor()))
        if self._chance(0.3):
            parts.append(("roomno", self._shop_number()))
        if self._chance(0.65):
            parts.append(("subpoi", self._draw.choice(words.SHOPS)))
        return parts

    def _zone(self, _district: District) -> list[Part]:
        draw = self._draw
        parts = [("devzone", self._name() + draw.choice(words.DEVELOPMENT_ZONES))]
        if self._chance(0.75):
            parts.append(("road", self._road()))
            if self._chance(0.8):
                parts.append(("roadno", self._road_number()))
        if self._chance(0.7):
            parts.append(("poi", self._name() + draw.choice(words.PLACES[-6:] + words.OFFICES)))
        return parts + self._inside(0.5)

    def _spot(self, district: District) -> list[Part]:
        parts = self._community(district, 0.1)
        road = self._road()
        parts.append(("road", road))
        kind = self._draw.random()
        if kind < 0.4:
            parts.append((NOISE, self._draw.choice(("与", "和", "", "/"))))
            parts.append(("road", self._road()))
            parts.append(("intersection", self._draw.choice(("交叉口", "路口", "交汇处", "十字路口", "交界处"))))
            return parts + self._beside(0.6)
        if kind < 0.8:
            if self._chance(0.5):
                parts.append(("roadno", self._road_number()))
            parts.append(("poi", self._building()))
            return parts + self._beside(0.9)
        parts.append(("roadno", self._road_number()))
        return parts + self._beside(0.5)

    def _community(self, district: District, share: float) -> list[Part]:
        names = [name for name in district.villages if name.endswith("社区")]
        return [("community", self._draw.choice(names))] if names and self._chance(share) else []

    def _inside(self, share: float) -> list[Part]:
        """Building, entrance, floor, room."""
        if not self._chance(share):
            return []
        draw, parts = self._draw, []
        if self._chance(0.85):
            number = draw.choice(
                (str(draw.randint(1, 48)), draw.choice("ABCDE"), f"{draw.choice('ABC')}{draw.randint(1, 9)}")
            )
            is_letter = number.isalpha()
            parts.append(("houseno", number + ("座" if is_letter else draw.choice(words.BUILDINGS))))
        if self._chance(0.4):
            entrance = draw.randint(1, 6)
            parts.append(("cellno", (_chinese(entrance) if self._chance(0.2) else str(entrance)) + "单元"))
        if self._chance(0.2):
            parts.append(("floorno", self._floor()))
        if self._chance(0.75) or not parts:
            room = f"{draw.randint(1, 33)}{draw.randint(1, 12):02d}"
            follows_number = bool(parts) and parts[-1][1][-1].isalnum() and parts[-1][1][-1].isascii()
            if follows_number:
                room = "-" + room
            if not parts or self._chance(0.6):
                room += draw.choice(("室", "室", "号", "房", "户"))
            if room[0] == "-":
                parts.append((NOISE, "-"))
                room = room[1:]
            parts.append(("roomno", room))
        return parts

    def _beside(self, share: float) -> list[Part]:
        if not self._chance(share):
            return []
        draw = self._draw
        if self._chance(0.3):
            distance = f"{draw.choice((20, 30, 50, 80, 100, 150, 200, 300, 500, 800))}{draw.choice(('米', '米', 'm'))}"
            return [
                ("assist", draw.choice(("往东", "往西", "往南", "往北", "向东", "向北", "北"))),
                ("distance", distance),
            ]
        return [("assist", draw.choice(words.ASSISTS))]

    # Names and numbers.

    def _name(self) -> str:
        """A name of two or three characters of the side that is being written, seen or unseen."""
        while True:
            if self._chance(0.5):
                name = self._draw.choice(words.STEMS)
            else:
                name = "".join(self._draw.choice(words.NAME_CHARS) for _ in range(2))
            if (zlib.crc32(name.encode()) % _UNSEEN_SHARE == 0) is self._is_unseen:
                return name

    def _road(self) -> str:
        side = self._draw.choice(words.SIDES) if self._chance(0.25) else ""
        return self._name() + side + self._draw.choice(words.ROADS)

    def _road_number(self) -> str:
        draw, number = self._draw, str(self._draw.randint(1, 1999))
        if self._chance(0.08):
            number = _chinese_number(int(number))
        elif self._chance(0.12):
            number += f"-{draw.randint(1, 20)}"
        elif self._chance(0.06):
            number = f"甲{number}"
        return number + draw.choice(("号", "号", "号", "号", "弄", "号院", ""))[: None if number[-1].isascii() else 1]

    def _building(self) -> str:
        kinds = self._draw.choices((words.HOMES, words.OFFICES, words.PLACES), (5, 3, 3))[0]
        return self._name() + self._draw.choice(kinds)

    def _mall_name(self) -> str:
        if self._chance(0.55):
            return self._draw.choice(words.BRANDS)
        return self._name() + self._draw.choice(words.OFFICES[-3:] + words.OFFICES[:3])

    def _floor(self) -> str:
        draw = self._draw
        number = draw.randint(1, 30)
        forms: tuple[Callable[[], str], ...] = (
            lambda: f"{number}楼",
            lambda: f"{number}层",
            lambda: f"{number}F",
            lambda: f"B{draw.randint(1, 3)}",
            lambda: f"{_chinese(number % 10 + 1)}楼",
            lambda: f"负{_chinese(draw.randint(1, 3))}层",
        )
        return draw.choice(forms)()

    def _shop_number(self) -> str:
        letter, ending = self._draw.choice(("", "A", "L", "B")), self._draw.choice(("号铺", "商铺", "室", "号"))
        return f"{letter}{self._draw.randint(101, 699)}{ending}"

    # Habits.

    def _reorder(self, parts: list[Part]) -> list[Part]:
        """The part after the divisions first, or the divisions last."""
        at = next((n for n, (kind, _) in enumerate(parts) if kind in ("road", "poi", "community", "devzone")), 0)
        return parts[at:] + parts[:at]

    def _dress(self, parts: list[Part]) -> list[Part]:
        draw = self._draw
        if self._chance(0.08):
            parts = [self._mistype(part) if self._chance(0.3) else part for part in parts]
        if self._chance(0.06):
            parts = [(kind, text.translate(_FULL_WIDTH)) for kind, text in parts]
        if self._chance(0.1):
            blank = draw.choice((" ", " ", "\u3000", ",", "，", "-", "/"))
            parts = [piece for part in parts for piece in (part, (NOISE, blank))][:-1]
        elif self._chance(0.1):
            at = draw.randrange(len(parts))
            parts.insert(at, (NOISE, " "))
        if self._chance(0.12):
            left, right = draw.choice(("()", "（）", "【】", "[]"))
            remark = [(NOISE, left), ("redundant", draw.choice(words.REMARKS)), (NOISE, right)]
            parts = parts + remark if self._chance(0.75) else remark + parts
        if self._chance(0.1):
            noise = self._person()
            parts = (
                [(NOISE, noise + draw.choice((" ", "，", ",", "："))), *parts]
                if self._chance(0.5)
                else [*parts, (NOISE, draw.choice((" ", "，", ",")) + noise)]
            )
        return parts

    def _person(self) -> str:
        draw = self._draw
        name = draw.choice(words.SURNAMES) + "".join(draw.choice(words.GIVEN) for _ in range(draw.randint(1, 2)))
        phone = draw.choice(("13", "15", "18", "17")) + "".join(draw.choice("0123456789") for _ in range(9))
        return draw.choice(
            (name, phone, f"{name}{phone}", f"{name} {phone}", f"收货人{name}", "收货地址", "地址", f"{name}收")
        )

    def _mistype(self, part: Part) -> Part:
        """One character doubled, lost, or swapped with its neighbour, in a part long enough to be recognised."""
        kind, text = part
        if kind in ("", "prov", "roomno", "houseno") or len(text) < 4:
            return part
        at = self._draw.randrange(1, len(text) - 1)
        how = self._draw.random()
        if how < 0.34:
            return kind, text[:at] + text[at] + text[at:]
        if how < 0.67:
            return kind, text[:at] + text[at + 1 :]
        return kind, text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]


def _chinese(number: int) -> str:
    """1 to 19 in Chinese figures."""
    if number <= 10:
        return words.DIGITS[number]
    return "十" + (words.DIGITS[number - 10] if number > 10 else "")


def _chinese_number(number: int) -> str:
    """A number below 10,000 in Chinese figures with their places."""
    places, text = "千百十", f"{number:04d}"
    said = ""
    for digit, place in zip(text, (*places, ""), strict=True):
        if digit != "0":
            said += words.DIGITS[int(digit)] + place
        elif said and not said.endswith("零"):
            said += "零"
    return said.rstrip("零")


if __name__ == "__main__":
    main()
