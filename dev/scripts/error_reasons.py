"""Prints docs/error-reasons.md, what a caller does about each reason: `python -m dev.scripts.error_reasons`.

The reasons are read from the code that raises them and from the public contracts; a reason without advice is an error.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from google.rpc import code_pb2

from common import errors, reasons

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("entailment", "address", "status")
INTERNAL = ("control", "updates", "runner")
BOTH = {"RUNNER_DIED"}  # counters of the internal contracts have its name
_WORD = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_CODES = {name for name in code_pb2.Code.keys()}  # noqa: C416, SIM118  protobuf's enum

WAIT = "send it again after the time in `RetryInfo`; the clients do"
# Reason → code, and what the caller does.
ADVICE: dict[str, tuple[str, str]] = {
    "ADDRESSES_MISSING": ("INVALID_ARGUMENT", "send 1 to 64 addresses"),
    "ADDRESSES_TOO_MANY": ("INVALID_ARGUMENT", "split the request: at most 64 addresses"),
    "ADDRESS_EMPTY": ("INVALID_ARGUMENT", "leave it out: nothing in it is visible; `field` names it"),
    "ADDRESS_TOO_LONG": ("INVALID_ARGUMENT", "shorten it (`server.max_address_chars`); `field` names it"),
    "DEADLINE_EXPIRED": (
        "DEADLINE_EXCEEDED",
        "give more time, or call less: its deadline passed before there was an answer",
    ),
    "DEADLINE_TOO_SHORT": (
        "DEADLINE_EXCEEDED",
        "give more time, or send less in one request: even an idle model needs longer; clients do not send it again",
    ),
    "DRAINING": ("UNAVAILABLE", "send it to another server, or to this one when it has restarted; the clients do"),
    "ENGINE_FAILED": ("INTERNAL", "report it with the request id; the same input would fail again"),
    "IMAGE_MISSING": ("INVALID_ARGUMENT", "send the bytes of a picture"),
    "IMAGE_TOO_COSTLY": ("INVALID_ARGUMENT", "save it anew: smaller, or as a baseline JPEG"),
    "IMAGE_TOO_LARGE": ("INVALID_ARGUMENT", "make it smaller; the message names the limit"),
    "IMAGE_UNREADABLE": (
        "INVALID_ARGUMENT",
        "send a whole JPEG, PNG or WebP file; the message says what it is",
    ),
    "INTERNAL": ("INTERNAL", "report it with the request id; an item of a stream was dropped, or a bug"),
    "ITEMS_MISSING": ("INVALID_ARGUMENT", "send 1 to 64 items in a message of a stream"),
    "ITEMS_TOO_MANY": ("INVALID_ARGUMENT", "send 1 to 64 items in a message of a stream"),
    "ITEM_ID_DUPLICATE": ("INVALID_ARGUMENT", "give each item an id of its own; the clients do"),
    "ITEM_ID_MISSING": ("INVALID_ARGUMENT", "give each item an id; the clients do"),
    "ITEM_ID_TOO_LONG": ("INVALID_ARGUMENT", "use at most 128 characters; the clients do"),
    "MESSAGE_MALFORMED": ("INVALID_ARGUMENT", "use stubs made from the contracts: the bytes are another message"),
    "MODEL_REQUIRED": ("INVALID_ARGUMENT", "name the model: several of this task are served"),
    "MODEL_UNKNOWN": ("NOT_FOUND", "name a model that this server has for this task; `hotslot status` lists them"),
    "NOT_FINITE": ("INTERNAL", "report it: the model gives no number for this input"),
    "NOT_READY": ("UNAVAILABLE", "wait until health reports SERVING, or use another server; the clients do"),
    "OUT_OF_MEMORY": ("RESOURCE_EXHAUSTED", "send less in one request, or again later"),
    "POISON_INPUT": ("INTERNAL", "do not send it again: this input ends the process that computes it; report it"),
    "PREMISE_EMPTY": ("INVALID_ARGUMENT", "leave it out: nothing in it is visible"),
    "PREMISE_TOO_LONG": ("INVALID_ARGUMENT", "shorten it (`server.max_statement_chars`)"),
    "PREPARE_TIMEOUT": (
        "INTERNAL",
        "send it again later, once: the machine was too busy to decode the picture; if that fails too, make it smaller",
    ),
    "QUEUE_FULL": ("RESOURCE_EXHAUSTED", f"{WAIT}. If it persists: fewer calls, a stream, or another server"),
    "QUOTA_EXCEEDED": ("RESOURCE_EXHAUSTED", f"{WAIT}. If it persists: ask the operator for a larger quota"),
    "RUNNER_DIED": (
        "INTERNAL",
        "send it again: its process ended, and no slot was left to compute it again",
    ),
    "SERVICE_UNKNOWN": ("NOT_FOUND", "ask health for a name that exists: a model, a service, `liveness` or none"),
    "STATEMENTS_MISSING": ("INVALID_ARGUMENT", "send 1 to 32 statements"),
    "STATEMENTS_TOO_MANY": ("INVALID_ARGUMENT", "split the request: at most 32 statements"),
    "STATEMENT_EMPTY": ("INVALID_ARGUMENT", "leave it out: nothing in it is visible; `field` names it"),
    "STATEMENT_TOO_LONG": ("INVALID_ARGUMENT", "shorten it (`server.max_statement_chars`); `field` names it"),
    "STREAM_IDLE": ("UNAVAILABLE", "open another stream when there is something to send; the clients do"),
    "TENSOR_CONTENTS": (
        "INVALID_ARGUMENT",
        "Open Inference Protocol: send contents of the shape and data type",
    ),
    "TENSOR_DATATYPE": ("INVALID_ARGUMENT", "Open Inference Protocol: use the data type of the model's metadata"),
    "TENSOR_DUPLICATE": ("INVALID_ARGUMENT", "Open Inference Protocol: send each tensor once"),
    "TENSOR_MISSING": ("INVALID_ARGUMENT", "Open Inference Protocol: send all inputs of the model's metadata"),
    "TENSOR_SHAPE": ("INVALID_ARGUMENT", "Open Inference Protocol: use the shape of the model's metadata"),
    "TENSOR_UNKNOWN": ("INVALID_ARGUMENT", "Open Inference Protocol: send only inputs of the model's metadata"),
    "TOKEN_MALFORMED": ("UNAUTHENTICATED", "send the metadata `authorization: Bearer TOKEN`"),
    "TOKEN_MISSING": ("UNAUTHENTICATED", "send the metadata `authorization: Bearer TOKEN`"),
    "TOKEN_UNKNOWN": (
        "UNAUTHENTICATED",
        "ask the operator for a new token: this one is not known (any more)",
    ),
    "UPLOAD_TOO_SLOW": ("DEADLINE_EXCEEDED", "send it again over a faster connection, or a smaller picture"),
    "VERSION_UNKNOWN": ("NOT_FOUND", "name a version that is loaded, or none (`x-model-version`)"),
}
NO_REASON = [
    (
        "UNAVAILABLE",
        "no server answers, TLS does not match, or health reports NOT_SERVING",
    ),
    (
        "RESOURCE_EXHAUSTED",
        "the message is larger than 32 MiB, or the metadata than 16 KiB: send less; the same again fails again",
    ),
    ("DEADLINE_EXCEEDED", "the client's clock was first: as `DEADLINE_EXPIRED`"),
    (
        "CANCELLED",
        "the caller has cancelled it; or it arrived while a server ended: send it again, as the clients do",
    ),
    (
        "UNIMPLEMENTED",
        "the request is compressed (`grpc-encoding`): send it as it is. Else the server is not hotslot, or an old one",
    ),
]


def reasons_raised() -> dict[str, set[str]]:
    """Every reason that calls of the public services can end with, and its codes as far as the code shows them."""
    found: dict[str, set[str]] = {}
    for path in sorted([*(ROOT / "inference" / "server").rglob("*.py"), ROOT / "common" / "errors.py"]):
        for reason, code in _reasons_in(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(reason, set()).update(code)
    public, internal = _words_of(PUBLIC) | BOTH, _words_of(INTERNAL)
    contracts = {word for word in public if word in ADVICE or word in found}
    seen = sorted(set(found) | contracts)
    return {reason: found.get(reason, set()) for reason in seen if reason in public or reason not in internal}


def _words_of(packages: tuple[str, ...]) -> set[str]:
    paths = [ROOT / "protos" / "hotslot" / name / "v1" / f"{name}.proto" for name in packages]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return {word for text in texts for line in text.splitlines() if "//" in line for word in _WORD.findall(line)}


def _reasons_in(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    names = {kind.__name__: code for kind, code in errors.CODES.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for keyword in node.keywords:
                if keyword.arg == "reason" and (reason := _reason_of(keyword.value)):
                    yield reason, {code_pb2.Code.Name(names[kind])} if kind in names else set()
        elif isinstance(node, ast.ClassDef) and node.name in names:
            for part in node.body:
                if isinstance(part, ast.Assign) and (reason := _reason_of(part.value)):
                    yield reason, {code_pb2.Code.Name(names[node.name])}


def _reason_of(node: ast.AST) -> str:
    """The reason that an expression names: a literal, or one of `common.reasons`; empty if it names none."""
    if isinstance(node, ast.Constant):
        return str(node.value or "")
    is_shared = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "reasons"
    return str(getattr(reasons, node.attr)) if is_shared and isinstance(node, ast.Attribute) else ""


def page() -> str:
    """The page."""
    lines = [
        "# Errors: reason → what to do",
        "",
        "Every error of hotslot has a `google.rpc.ErrorInfo` with domain `hotslot` and one of these reasons; the",
        "message says more, for people. An item of a stream has the same, as its outcome. Made from the code by",
        "`python -m dev.scripts.error_reasons > docs/error-reasons.md`; a test keeps it so.",
        "",
        "`UNAVAILABLE`, `RESOURCE_EXHAUSTED` with one of these reasons, and `CANCELLED` that comes from a server may",
        "be sent again, and the shipped [service config](service-config.md) does so. Of the others the table says",
        "which may be sent again. A `RESOURCE_EXHAUSTED` without a reason is a message that is too large.",
        "",
        "| reason | code | what to do |",
        "|---|---|---|",
        *(f"| `{reason}` | `{ADVICE[reason][0]}` | {ADVICE[reason][1]} |" for reason in sorted(ADVICE)),
        "",
        "## Without a reason",
        "",
        "Errors of the connection, of gRPC itself, or of a proxy on the way:",
        "",
        "| code | what it means |",
        "|---|---|",
        *(f"| `{code}` | {meaning} |" for code, meaning in NO_REASON),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
