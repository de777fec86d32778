"""The archive of `hotslot doctor` for a bug report: no secrets, no pictures, no texts of callers.

Rules:
 1. What is written is chosen: findings, settings, versions, states, metrics, and of log lines the known fields.
 2. Settings whose name says that they hold a URL, a file or a variable of a secret are replaced.
 3. Golden items, pictures, statements and addresses are never read.
 4. The rest is searched for the contents of all secret files, and for what looks like a secret; both are replaced.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cli.settings import Settings
from common.durable import read_bounded
from common.json_load import load_json
from common.settings import inherit_environment

REPLACED = "(left out)"
MAX_LOG_LINES = 5000
_MAX_SECRET_BYTES = 1 << 20
_MIN_SECRET_CHARS = 6
_FIELDS = """
    at level process event model slot state role revision digest previous_digest device fallback_device pid seconds
    reason grpc_code rpc_service rpc_method received sent request_id transaction_id generation stage outcome update_id
    source bundle program restarts failures service serving port metrics_port health_port lines total hook target
    notifications status exit_code queued_seconds prepared_seconds computed_seconds load_seconds
"""
_LOG_FIELDS = frozenset(_FIELDS.split())
_PATTERNS = (
    re.compile(r"hotslot_[A-Za-z0-9_-]{20,}"),
    re.compile(r"(?i)bearer\s+[A-Za-z0-9._~+/=-]+"),
    re.compile(r"(?i)\b(?:key|access_token|token|secret|sign|password|authorization)=[^\s&\"']+"),
    re.compile(r"://[^/\s\"'@]+@"),
    re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL),
    re.compile(r"sha256:[0-9a-f]{64}(?= \d{4}-\d\d-\d\d)"),  # hashes of tokens
)
_SECRET_KEYS = re.compile(r"(?:url|_file|_variable|token|secret|key)$")
_KEPT_KEYS = frozenset({"caller_metadata_key"})


class Archive:
    """Collects members and writes one tar.gz."""

    def __init__(self, secrets: Iterable[str], now: datetime) -> None:
        self._secrets = sorted({one for one in secrets if len(one) >= _MIN_SECRET_CHARS}, key=len, reverse=True)
        self._now = now
        self._members: dict[str, bytes] = {}

    def add(self, name: str, content: object) -> None:
        """Add a text as it is, or anything else as JSON; secrets are replaced."""
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1, default=str)
        self._members[name] = self._clean(text).encode()

    def write(self, path: Path) -> list[str]:
        """Write the file, readable by its owner alone; returns the names of its members."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in self._members.items():
                member = tarfile.TarInfo(f"hotslot-doctor/{name}")
                member.size, member.mtime, member.mode = len(content), int(self._now.timestamp()), 0o600
                archive.addfile(member, io.BytesIO(content))
        path.touch(mode=0o600)
        path.write_bytes(buffer.getvalue())
        return list(self._members)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REPLACED)
        for pattern in _PATTERNS:
            text = pattern.sub(REPLACED, text)
        return text


def redact_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the values of keys that lead to secrets; whether they are set stays visible."""
    return {key: _redact(key, value) for key, value in row.items()}


def find_secrets(settings: Settings) -> Iterator[str]:
    """The contents of all secret files that the settings name, line by line, and of secret variables."""
    environment = inherit_environment()
    for key, value in _walk(settings.model_dump()):
        if isinstance(value, Path) and _SECRET_KEYS.search(key):
            yield from _read_words(value)
        elif key.endswith("_variable") and isinstance(value, str) and value in environment:
            yield environment[value]
        elif key == "url" and isinstance(value, str):
            yield value


def choose_lines(lines: Iterable[str]) -> str:
    """The last log lines, each with its known fields alone; what is no JSON is left out."""
    kept: list[str] = []
    for line in lines:
        try:
            row = load_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("event"), str):
            chosen = {key: value for key, value in row.items() if key in _LOG_FIELDS and _is_plain(value)}
            kept.append(json.dumps(chosen, ensure_ascii=False))
            del kept[:-MAX_LOG_LINES]
    return "\n".join(kept) + "\n"


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float | bool) or (isinstance(value, str) and len(value) <= 200)  # noqa: PLR2004


def _redact(key: str, value: Any) -> Any:  # noqa: ANN401  settings
    if isinstance(value, Mapping):
        return redact_settings(value)
    if isinstance(value, list | tuple):
        return [redact_settings(one) if isinstance(one, Mapping) else _redact(key, one) for one in value]
    if _SECRET_KEYS.search(key) and key not in _KEPT_KEYS and value not in (None, "", False, True):
        return REPLACED
    return value


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401  settings
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _walk(one, str(name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _walk(one, key)
    else:
        yield key, value


def _read_words(path: Path) -> Iterator[str]:
    try:
        text = read_bounded(path, _MAX_SECRET_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return
    yield from (line.strip() for line in text.splitlines())
    yield from text.split()
