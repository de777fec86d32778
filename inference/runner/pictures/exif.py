"""Reads the orientation from EXIF, whatever else in it is broken."""

import struct

_ORIENTATION = 0x0112
_MAX_TAGS = 1000  # cameras write fewer than 100
_BYTE, _SHORT, _LONG, _SIGNED_BYTE, _SIGNED_SHORT, _SIGNED_LONG = 1, 3, 4, 6, 8, 9
_VALUE = {_BYTE: "B", _SIGNED_BYTE: "b", _SHORT: "H", _SIGNED_SHORT: "h", _LONG: "I", _SIGNED_LONG: "i"}
UPRIGHT = 1
_LAST = 8


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 if there is none that can be read.

    Args:
        exif: a TIFF structure, possibly after "Exif" and two zero bytes. Only the first directory is read, and of it
            only this tag, so that no other one can be in the way.
    """
    data = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, directory)
        for number in range(min(count, _MAX_TAGS)):
            at = directory + 2 + 12 * number
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            if tag == _ORIENTATION and kind in _VALUE:
                (value,) = struct.unpack_from(order + _VALUE[kind], data, at + 8)
                return value if UPRIGHT <= value <= _LAST else UPRIGHT
    except struct.error:  # the directory reaches beyond the data
        pass
    return UPRIGHT
