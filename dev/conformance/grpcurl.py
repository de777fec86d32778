"""Runs rows of the conformance table with grpcurl: JSON lines in, JSON lines out, as the runner of a language.

grpcurl neither retries nor resends, so rows that need it, and rows in whose middle something happens, are left out.
"""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dev.conformance.report import matches
from dev.harness.process import ROOT

TOOL = ROOT / ".tools" / "bin" / "grpcurl"
PATHS = {
    "entailment": "hotslot.entailment.v1.EntailmentService",
    "address": "hotslot.address.v1.AddressTaggingService",
}
CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
)
SITUATIONS = {"plain", "tls", "token-missing", "token-unknown", "trial", "busy", "quota-used"}
LIMIT_SECONDS = 60
NOT_CONNECTED = 1  # exit code; that of a failed call is 64 and more
CONNECT_TRIES = 10
Json = dict[str, Any]


def serve_rows(name: str, run_row: Callable[[Json, Json], Json], shows: Sequence[str] = ()) -> None:
    """Read commands until the end of the input, and answer each.

    Args:
        name: of the tool.
        run_row: makes the call of a row and command; returns what is seen.
        shows: the keys that the tool can show; empty: all.
    """
    for line in sys.stdin:
        command = json.loads(line)
        row, began = command["row"], time.monotonic()
        why = find_obstacle(row)
        answer: Json = {"row": row["id"], "language": name, **({"shows": list(shows)} if shows else {})}
        if why:
            answer["skipped"] = why
        else:
            answer["seen"] = run_row(row, command)
            answer["seconds"] = round(time.monotonic() - began, 3)
            answer["passed"] = matches(row, answer)
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def find_obstacle(row: Json) -> str:
    """Why a tool that neither retries nor resends cannot run a row; empty if it can."""
    if row["situation"] not in SITUATIONS or "report_at" in row:
        return "it needs a retry, or happens in the middle of a stream"
    if "cancel_after_seconds" in row or (row["situation"] == "quota-used" and row.get("retry", True)):
        return "it needs a cancellation or a retry"
    return ""


def run(row: Json, command: Json) -> Json:
    """What grpcurl shows of a row."""
    messages = build_messages(row, Path(command["pictures"]))
    method = f"{PATHS[row['task']]}/{'Predict' if row['call'] == 'unary' else 'StreamPredict'}"
    done = call_connected(row, command["endpoint"], method, "\n".join(map(json.dumps, messages)))
    failure = show_error(next(documents(done.stderr), {})) if done.returncode else None
    answers = list(documents(done.stdout))
    if row["call"] == "unary":
        return failure or show_answer(answers[0])
    return show_stream(answers, len(messages), failure)


def build_messages(row: Json, pictures: Path) -> list[Json]:
    """The messages of a row, as JSON."""
    if row["call"] == "unary":
        return [encode(row["request"], pictures)]
    items = [encode(one, pictures) for one in row["items"]] * row.get("repeat", 1)
    return [{"items": [{"item_id": str(number), "request": one}]} for number, one in enumerate(items)]


def call_connected(row: Json, endpoint: Json, method: str, data: str) -> "subprocess.CompletedProcess[str]":
    """Run it; again if the row's deadline has passed before there was a connection, which grpcurl's limit includes."""
    for _ in range(CONNECT_TRIES - 1):
        done = call(row, endpoint, method, data)
        if done.returncode != NOT_CONNECTED or "deadline_seconds" not in row:
            return done
    return call(row, endpoint, method, data)


def call(row: Json, endpoint: Json, method: str, data: str) -> "subprocess.CompletedProcess[str]":
    """Run it by reflection."""
    trust = ["-plaintext"]
    if "ca_file" in endpoint:
        trust = ["-cacert", endpoint["ca_file"], "-cert", endpoint["certificate_file"], "-key", endpoint["key_file"]]
    if "token_file" in endpoint:
        trust += ["-H", f"authorization: Bearer {Path(endpoint['token_file']).read_text().strip()}"]
    for key, value in tags_of(row).items():
        trust += ["-H", f"{key}: {value}"]
    limit = str(row.get("deadline_seconds", LIMIT_SECONDS))
    # By files: a server that wants a token shows its reflection to nobody without one.
    files = [f"-import-path={ROOT / path}" for path in ("protos", "dev/third_party/googleapis")]
    names = ("entailment", "address")
    files += [f"-proto=hotslot/{name}/v1/{name}.proto" for name in names] + ["-proto=google/rpc/error_details.proto"]
    options = ["-emit-defaults", "-format-error", f"-max-time={limit}", *files, "-d", "@"]
    line = [str(TOOL), *trust, *options, endpoint["address"], method]
    return subprocess.run(line, input=data, capture_output=True, text=True, timeout=LIMIT_SECONDS + 10, check=False)


def tags_of(row: Json) -> dict[str, str]:
    """The metadata of a row's call."""
    names = {"x-model-version": "model_version", "x-routing-key": "routing_key"}
    return {key: row[name] for key, name in names.items() if name in row}


def encode(request: Json, pictures: Path) -> Json:
    """A request of the table as grpcurl takes it."""
    if "addresses" in request:
        return request
    content = request.get("picture_text", "").encode()
    if "picture" in request:
        content = (pictures / request["picture"]).read_bytes()
    content += bytes(request.get("padding", 0))
    found: Json = {key: request[key] for key in ("model", "statements", "premise") if key in request}
    return {**found, **({"image": {"content": base64.b64encode(content).decode()}} if content else {})}


def show_answer(answer: Json) -> Json:
    """An answer as the table writes it."""
    labels = []
    for result in answer["results"]:
        if "label" in result:
            labels.append(result["label"].removeprefix("LABEL_").lower())
        else:
            labels.append("|".join(f"{span['kind']}={span['text']}" for span in result["spans"]))
    by = answer["servedBy"]
    return {"outcome": "answer", "labels": labels, "model": by["model"], "revision": by["revision"]}


def show_error(status: Json) -> Json:
    """An error as the table writes it."""
    details = status.get("details", [])
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in details}
    violations = kinds.get("BadRequest", {}).get("fieldViolations", [])
    return {
        "outcome": "error",
        "code": CODES.split()[status.get("code", 2)],
        "reason": kinds.get("ErrorInfo", {}).get("reason", ""),
        "field": violations[0]["field"] if violations else "",
        "retry_hint": "RetryInfo" in kinds,
    }


def show_stream(answers: list[Json], count: int, failure: Json | None) -> Json:
    """A stream as the table writes it."""
    results: list[Json | None] = [None] * count
    duplicated = 0
    for answer in answers:
        for result in answer["results"]:
            number = int(result["itemId"])
            duplicated += results[number] is not None
            results[number] = show_answer(result["response"]) if "response" in result else show_error(result["error"])
    found: Json = {"results": results, "duplicated": duplicated, "missing": results.count(None)}
    return {**(failure or {"outcome": "ended"}), **found}


def documents(text: str) -> Iterator[Json]:
    """The JSON documents of a text, one after the other."""
    rest = text[text.find("{") :].strip() if "{" in text else ""
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        yield document
        rest = rest[end:].strip()


if __name__ == "__main__":
    serve_rows("grpcurl", run)
