"""Addresses for the scripted engine: cut after the characters that end a part."""

import re
from dataclasses import dataclass

from inference.wire import AddressSpan

_KINDS = {
    "省": "prov",
    "市": "city",
    "区": "district",
    "镇": "town",
    "街道": "town",
    "路": "road",
    "街": "road",
    "号": "houseno",
}
_PART = re.compile(r"(.*?)(省|市|区|镇|街道|路|街|号|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TaggedItem:
    """Prepared addresses, a row each."""

    addresses: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Device rows."""
        return len(self.addresses)


def tag(address: str) -> tuple[AddressSpan, ...]:
    """The parts of an address; what ends with none of the characters is a "poi"."""
    found = (match for match in _PART.finditer(address) if match[0])
    return tuple(AddressSpan(_KINDS.get(match[2], "poi"), match.start(), match.end(), 1.0) for match in found)
