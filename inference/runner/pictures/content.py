"""Says what a content is that is no picture that can be decoded."""

import re

_SOME = 1024  # bytes that are looked at
_HEX_SHOWN = 8  # bytes
_SIGNATURES = (
    (b"GIF87a", "a GIF file"),
    (b"GIF89a", "a GIF file"),
    (b"II*\0", "a TIFF file (or a camera's raw file)"),
    (b"MM\0*", "a TIFF file (or a camera's raw file)"),
    (b"II+\0", "a BigTIFF file"),
    (b"MM\0+", "a BigTIFF file"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon file (ICO)"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI file"),
    (b"v/1\x01", "an OpenEXR file"),
    (b"II\xbc\x01", "a JPEG XR file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"gimp xcf", "a GIMP file"),
    (b"ID3", "an audio file (MP3)"),
    (b"OggS", "an audio or video file (Ogg)"),
    (b"FLV\1", "a video (Flash)"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"PAR1", "a Parquet file: send one picture of it"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PK\3\4", "a zip archive (or an Office document)"),
    (b"PK\5\6", "an empty zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x93NUMPY", "a NumPy array: send an encoded file"),
    (b"\x80\4\x95", "a Python pickle"),
    (b"\x80\5\x95", "a Python pickle"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"version https://git-lfs", "a git-lfs pointer: fetch the file itself (git lfs pull)"),
    (b"data:", "a data: URL: send the bytes that it encodes"),
    (b"http://", "a URL: send the bytes of the file"),
    (b"https://", "a URL: send the bytes of the file"),
    (b"\x89PNG", "a PNG file damaged by a transfer in text mode"),
    (b"\xef\xbf\xbdPNG", "a PNG file that was decoded as text: send the bytes"),
    (b"\xef\xbf\xbd\xef\xbf\xbd", "binary data that was decoded as text: send the bytes"),
    (b"\xc3\xbf\xc3\x98", "a JPEG file that was encoded as UTF-8: send the bytes"),
    (b"\xc2\x89PNG", "a PNG file that was encoded as UTF-8: send the bytes"),
)
_BOXES = {
    b"heic": "a HEIC file",
    b"heix": "a HEIC file",
    b"hevc": "a HEIC file",
    b"hevx": "a HEIC file",
    b"heim": "a HEIC file",
    b"mif1": "a HEIF file",
    b"msf1": "a HEIF file",
    b"avif": "an AVIF file",
    b"avis": "an AVIF file",
}
_TAR_PLACE, _DICOM_PLACE = 257, 128
_RIFF_KINDS = {b"WAVE": "an audio file (WAV)", b"AVI ": "a video (AVI)"}
_PICTURES = ((b"\xff\xd8\xff\xe0", "JPEG"), (b"\xff\xd8\xff\xe1", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"))
_NOTHINGS = (b"none", b"null", b"undefined", b"nan", b"[object object]", b"[object blob]", b"[object file]")
_URL = re.compile(rb"[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{64,}={0,2}\Z")
_BASE64_STARTS = (b"/9j/", b"iVBORw0KGgo", b"UklGR", b"R0lGOD")  # JPEG, PNG, RIFF, GIF
_HEX = re.compile(rb"(?:0x|\\x)?(?:ffd8ff|89504e47|52494646)", re.IGNORECASE)
_BYTES_LITERAL = re.compile(rb"b['\"]")
_PATH = re.compile(rb"(?:/|~/|\./|[A-Za-z]:\\)[^\n]{1,1000}\Z")


def name_content(content: bytes) -> str:
    """What the content is, as the end of the sentence "the content is …"; never a part of the content as text."""
    if not content:
        return "nothing"
    start = content[:_SOME]
    known = _name_binary(start)
    if known:
        return known
    before, kind = _find_picture(start)
    if before:
        return f"a {kind} file with {before} byte{'s' if before > 1 else ''} before it: send the file alone"
    return _name_text(content) or f"of an unknown kind; it begins with the bytes {start[:_HEX_SHOWN].hex(' ')}"


def _name_binary(start: bytes) -> str:
    """What a content is by the bytes at its fixed places; empty if they say nothing."""
    boxes = _BOXES.get(start[8:12], "a video (MP4 or MOV)") if start[4:8] == b"ftyp" else ""
    chunks = _RIFF_KINDS.get(start[8:12], "") if start.startswith(b"RIFF") else ""
    places: tuple[tuple[object, str], ...] = (
        (chunks, chunks),
        (boxes, boxes),
        (start.startswith(b"BM") and start[6:10] == bytes(4), "a BMP file"),
        (start[_TAR_PLACE:].startswith(b"ustar"), "a tar archive"),
        (start[_DICOM_PLACE:].startswith(b"DICM"), "a DICOM file"),
        (not any(start), "only zero bytes"),
    )
    signatures = (name for signature, name in _SIGNATURES if start.startswith(signature))
    return next(signatures, "") or next((name for is_that, name in places if is_that), "")


def _find_picture(start: bytes) -> tuple[int, str]:
    """Where a picture begins within the content, and of which kind; 0 if none does."""
    found = [(start.find(mark), kind) for mark, kind in _PICTURES]
    return min(((place, kind) for place, kind in found if place > 0), default=(0, ""))


def _name_text(content: bytes) -> str:
    """What a text is; empty if the content is no text."""
    text = content[:_SOME].removeprefix(b"\xef\xbb\xbf").strip()
    is_whole = len(content) <= _SOME
    small, joined = text.lower(), b"".join(text.splitlines())
    checks: tuple[tuple[object, str], ...] = (
        (not text, "only blanks"),
        (small.startswith((b"<!doctype html", b"<html", b"<head", b"<body")), "HTML, perhaps an error page"),
        (small in _NOTHINGS, "what a program writes for no picture (such as None or undefined)"),
        (small.startswith((b"<pil.", b"<_io.")), "the text of a Python object: send the file's bytes"),
        (small.startswith(b"<svg") or (small.startswith(b"<?xml") and b"<svg" in small), "an SVG drawing"),
        (small.startswith(b"<"), "XML or HTML, perhaps an error message"),
        (_HEX.match(text), "hexadecimal text: send the bytes that it encodes"),
        (joined.strip(b"\"'").startswith(_BASE64_STARTS), "base64 text: send the bytes that it encodes"),
        (_BASE64.match(joined), "base64 text: send the bytes that it encodes"),
        (text.startswith((b"{", b"[")), "JSON"),
        (_BYTES_LITERAL.match(text), "the text of a Python bytes literal: send the bytes"),
        (_URL.match(text), "a URL: send the bytes of the file"),
        (is_whole and _PATH.match(text), "the path of a file: send the bytes of the file"),
        (_is_text(text), "text"),
    )
    return next((name for is_that, name in checks if is_that), "")


def _is_text(data: bytes) -> bool:
    try:
        # The last character may have been cut.
        text = data.decode("utf-8") if len(data) < _SOME - 4 else data.decode("utf-8", errors="ignore")
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char.isspace() for char in text) and len(text) * 4 >= len(data)
