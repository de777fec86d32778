"""Reads the header of a JPEG and counts the work of its scans, without decoding.

Segments are read as libjpeg reads them, so that what is counted here is what is decoded there (ITU-T T.81, annex B).
"""

import re
from dataclasses import dataclass, field
from math import ceil

from inference.runner.pictures.file import JpegLayout, Kind, PictureFile, PictureRefused, unreadable

SIGNATURE = b"\xff\xd8\xff"
MAX_SEGMENTS = 4096  # a camera writes fewer than 100
MAX_PROFILE_BYTES = 4 << 20
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no stuffed zero, no restart marker, no fill byte
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, sequential, progressive; the last two with arithmetic coding
_PROGRESSIVE, _ARITHMETIC = {0xC2, 0xCA}, {0xC9, 0xCA}
_OTHER_FRAMES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xCB: "lossless",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
    0xDE: "hierarchical",
}
_SOI, _EOI, _SOS, _DHT, _DAC, _DQT, _DRI = 0xD8, 0xD9, 0xDA, 0xC4, 0xCC, 0xDB, 0xDD
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_TEM = 0x01
_JFIF_BYTES, _ADOBE_BYTES = 14, 12  # libjpeg ignores shorter ones
_BLOCK = 8  # samples a side
_MAX_FACTOR = 4  # of a component's sampling


@dataclass(frozen=True, slots=True)
class _Component:
    number: int
    across: int  # sampling factors
    down: int


@dataclass(slots=True)
class _Reader:
    """The state of one walk over the segments."""

    content: bytes
    max_scans: int
    parts: list[tuple[int, int]] = field(default_factory=list)  # ranges of the file that decoding needs
    frame: tuple[int, int, int] | None = None  # marker, width, height
    components: tuple[_Component, ...] = ()
    scans: int = 0
    scanned_blocks: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    profile: dict[int, bytes] = field(default_factory=dict)
    profile_parts: int = 0
    is_whole: bool = False  # the end marker is there

    def walk(self) -> None:
        """Read all segments up to the end of the picture."""
        position, segments = 2, 0
        while (found := _MARKER.search(self.content, position)) is not None:
            segments += 1
            if segments > MAX_SEGMENTS + self.max_scans:
                raise PictureRefused(f"the JPEG file has more than {MAX_SEGMENTS} segments", reason="IMAGE_TOO_COSTLY")
            start, marker = found.start(), self.content[found.start() + 1]
            position = found.end()
            if marker == _EOI:
                self.is_whole = True
                return
            if marker == _SOI:
                raise unreadable(Kind.JPEG, "is damaged: a second picture begins inside it")
            if marker == _TEM:
                continue
            position += max(2, int.from_bytes(self.content[position : position + 2]))
            self._read_segment(marker, start, position)

    def essential(self) -> bytes:
        """The file without the segments that do not matter to decoding."""
        view = memoryview(self.content)
        return b"".join([b"\xff\xd8", *(view[start:stop] for start, stop in self.parts), b"\xff\xd9"])

    def _read_segment(self, marker: int, start: int, stop: int) -> None:
        body = self.content[start + 4 : stop]
        if marker in _FRAMES:
            self._read_frame(marker, body)
        elif marker in _OTHER_FRAMES:
            raise unreadable(Kind.JPEG, f"is {_OTHER_FRAMES[marker]}, which is not supported")
        elif marker == _SOS:
            self._read_scan(body)
            stop = self._find_scan_end(stop)
        elif marker == _APP1 and body.startswith(b"Exif\0") and not self.exif:
            self.exif = body[6:]
        elif marker == _APP1 and body.startswith(_XMP):
            self.xmp = body[len(_XMP) :]
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0"):
            self._read_profile(body)
        is_needed = marker in _FRAMES or marker in {_SOS, _DHT, _DAC, _DQT, _DRI}
        is_needed |= marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= _JFIF_BYTES
        is_needed |= marker == _APP14 and body.startswith(b"Adobe") and len(body) >= _ADOBE_BYTES
        if is_needed:
            self._keep(start, stop)

    def _keep(self, start: int, stop: int) -> None:
        if self.parts and self.parts[-1][1] == start:
            self.parts[-1] = (self.parts[-1][0], stop)
        else:
            self.parts.append((start, stop))

    def _read_frame(self, marker: int, body: bytes) -> None:
        if self.frame is not None:
            raise unreadable(Kind.JPEG, "is damaged: it has two frame headers")
        if len(body) < 6 or len(body) < 6 + 3 * body[5]:  # noqa: PLR2004  bytes of the frame header
            raise unreadable(Kind.JPEG, "is damaged: its frame header is too short")
        if body[0] != 8:  # noqa: PLR2004
            raise unreadable(Kind.JPEG, f"has {body[0]} bits a sample; only 8 are supported")
        if body[5] not in (1, 3, 4):
            raise unreadable(Kind.JPEG, f"has {body[5]} colour components; only 1, 3 and 4 are supported")
        rows = [body[at : at + 3] for at in range(6, 6 + 3 * body[5], 3)]
        self.components = tuple(_Component(row[0], row[1] >> 4, row[1] & 15) for row in rows)
        if any(not 1 <= factor <= _MAX_FACTOR for one in self.components for factor in (one.across, one.down)):
            raise unreadable(Kind.JPEG, "is damaged: a sampling factor is out of range")
        self.frame = marker, int.from_bytes(body[3:5]), int.from_bytes(body[1:3])
        if not self.frame[1] or not self.frame[2]:
            raise unreadable(Kind.JPEG, "has no pixels, or tells its height only at its end (DNL)")

    def _read_scan(self, body: bytes) -> None:
        if self.frame is None:
            raise unreadable(Kind.JPEG, "is damaged: a scan comes before the frame header")
        self.scans += 1
        if self.scans > self.max_scans:
            raise PictureRefused(
                f"the JPEG file has more than {self.max_scans} scans, which is the limit", reason="IMAGE_TOO_COSTLY"
            )
        count = body[0] if body else 0
        numbers = set(body[1 : 1 + 2 * count : 2])
        self.scanned_blocks += sum(self._blocks(one) for one in self.components if one.number in numbers)

    def _find_scan_end(self, position: int) -> int:
        found = _MARKER.search(self.content, position)
        return found.start() if found else len(self.content)

    def _read_profile(self, body: bytes) -> None:
        if len(body) > 14 and sum(map(len, self.profile.values())) < MAX_PROFILE_BYTES:  # noqa: PLR2004
            self.profile.setdefault(body[12], body[14:])
            self.profile_parts = body[13]

    def _blocks(self, component: _Component) -> int:
        _, width, height = self.frame or (0, 0, 0)
        most_across = max(one.across for one in self.components)
        most_down = max(one.down for one in self.components)
        across = ceil(width * component.across / most_across / _BLOCK)
        return across * ceil(height * component.down / most_down / _BLOCK)

    def blocks(self) -> int:
        """Blocks of all components."""
        return sum(map(self._blocks, self.components))

    def joined_profile(self) -> bytes:
        """The ICC profile if all its parts are there."""
        if sorted(self.profile) != list(range(1, self.profile_parts + 1)):
            return b""
        return b"".join(self.profile[number] for number in sorted(self.profile))


def read_jpeg(content: bytes, max_scans: int) -> PictureFile:
    """Read the header of a JPEG, and walk over its scans.

    Raises:
        PictureRefused: the header is damaged or of a kind that is not supported, or there are more than `max_scans`.
    """
    reader = _Reader(content, max_scans)
    reader.walk()
    if reader.frame is None or reader.scans == 0:
        raise unreadable(Kind.JPEG, "is truncated: it ends before its first scan")
    if not reader.is_whole:
        raise unreadable(Kind.JPEG, "is truncated: it has no end")
    marker, width, height = reader.frame
    layout = JpegLayout(
        components=len(reader.components),
        blocks=reader.blocks(),
        scans=reader.scans,
        scanned_blocks=reader.scanned_blocks,
        is_buffered=marker in _PROGRESSIVE or reader.scans > 1,
        is_arithmetic=marker in _ARITHMETIC,
    )
    return PictureFile(
        Kind.JPEG,
        width,
        height,
        layout,
        reader.essential(),
        exif=reader.exif,
        profile=reader.joined_profile(),
        xmp=reader.xmp,
    )
