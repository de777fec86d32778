"""Compares the weight file with the hash that a publisher states in configuration.json.

No part of ModelScope's SDK reads such a key, and its hub lists its own hashes, which the updater compares. The key is a
publisher's own word about the file, so another file is refused.
"""

import re
from pathlib import Path

from common.bundle import hash_file
from common.engine_files import CONFIGURATION, WEIGHTS_HASH
from inference.runner.conversion.config_file import ConfigSection
from inference.runner.conversion.tensor_location import refuse

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_INDEX_SUFFIX = ".index.json"


def read_weights_hash(top: ConfigSection) -> object:
    """The stated hash, not checked; None if there is none."""
    return top.get(WEIGHTS_HASH)


def compare_weights(folder: Path, file: str, stated: object) -> tuple[str, ...]:
    """Compare the weight file of a folder with the stated hash, if there is one.

    Args:
        folder: published.
        file: name of the weight file, or of the index of its shards.
        stated: by `read_weights_hash`.

    Returns:
        A note about the comparison; none if nothing is stated.

    Raises:
        ConversionRefused: the file has another hash.
        OSError: it cannot be read.
    """
    if stated is None:
        return ()
    key = f"{CONFIGURATION}: {WEIGHTS_HASH}"
    found = _SHA256.fullmatch(stated) if isinstance(stated, str) else None
    if found is None:
        return (f"{key} is no SHA-256 of 64 hexadecimal digits; it is not compared",)
    if file.endswith(_INDEX_SUFFIX):
        return (f"{key} is not compared: the weights are in several files",)
    sha256 = hash_file(folder / file).sha256
    if sha256 != found[1].lower():
        refuse(
            f"{file} is not the file that {key} means: it has the SHA-256 {sha256[:12]}…, stated is {found[1][:12]}…; "
            "upload the file again, or correct the key"
        )
    return (f"{key} is the hash of {file}",)
