"""What `dev.parity.mgeo.fixtures` has recorded; needs no modelscope."""

import gzip
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "tests" / "mgeo" / "fixtures"
TOKENS_FILE = FOLDER / "tokens.json.gz"


def read_record(path: Path) -> dict[str, Any]:
    """A recorded file."""
    content: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return content
