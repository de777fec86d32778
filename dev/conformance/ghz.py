"""Runs rows of the conformance table with ghz: JSON lines in, JSON lines out, as the runner of a language.

ghz measures, and shows no answers: of a row it shows whether the call ended well, and else its code.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]  # no other name for it
from google.protobuf.message import Message

from dev.conformance.grpcurl import LIMIT_SECONDS, PATHS, Json, build_messages, serve_rows, tags_of
from dev.harness.process import ROOT
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2

TOOL = ROOT / ".tools" / "bin" / "ghz"
SHOWS = ["outcome", "code"]
_KINDS: dict[tuple[str, str], type[Message]] = {
    ("entailment", "unary"): entailment_pb2.PredictRequest,
    ("entailment", "stream"): entailment_pb2.StreamPredictRequest,
    ("address", "unary"): address_pb2.PredictRequest,
    ("address", "stream"): address_pb2.StreamPredictRequest,
}
_CODES = {"Canceled": "CANCELLED", "OK": "OK"}


def run(row: Json, command: Json) -> Json:
    """What ghz shows of a row."""
    kind = _KINDS[row["task"], row["call"]]
    messages = [json_format.ParseDict(one, kind()) for one in build_messages(row, Path(command["pictures"]))]
    data = encode(messages, is_stream=row["call"] == "stream")
    with tempfile.NamedTemporaryFile(prefix="hotslot-", suffix=".bin") as file:
        file.write(data)
        file.flush()
        # An empty file is refused, although it is a message without fields.
        done = call(row, command["endpoint"], f"--binary-file={file.name}" if data else "--data={}")
    (outcome,) = json.loads(done.stdout)["details"]
    code = name_code(outcome["status"])
    if code != "OK":
        return {"outcome": "error", "code": code}
    return {"outcome": "answer" if row["call"] == "unary" else "ended"}


def call(row: Json, endpoint: Json, data: str) -> "subprocess.CompletedProcess[str]":
    """Make one call, by the files of the contracts.

    Args:
        row: of the table.
        endpoint: of the server.
        data: the option that names the messages.
    """
    trust = ["--insecure"]
    if "ca_file" in endpoint:
        trust = [f"--cacert={endpoint['ca_file']}", f"--cert={endpoint['certificate_file']}"]
        trust.append(f"--key={endpoint['key_file']}")
    metadata = tags_of(row)
    if "token_file" in endpoint:
        metadata["authorization"] = f"Bearer {Path(endpoint['token_file']).read_text().strip()}"
    trust += [f"--metadata={json.dumps(metadata)}"] if metadata else []
    method = f"{PATHS[row['task']]}.{'Predict' if row['call'] == 'unary' else 'StreamPredict'}"
    files = [f"--proto={ROOT / 'protos' / 'hotslot' / row['task'] / 'v1' / row['task']}.proto"]
    files.append(f"--import-paths={ROOT / 'protos'},{ROOT / 'dev/third_party/googleapis'}")
    limit = f"--timeout={row.get('deadline_seconds', LIMIT_SECONDS)}s"
    line = [str(TOOL), *trust, *files, f"--call={method}", limit, "-n1", "-c1", "-Ojson", data]
    return subprocess.run(
        [*line, endpoint["address"]], capture_output=True, text=True, timeout=LIMIT_SECONDS + 10, check=True
    )


def encode(messages: list[Message], *, is_stream: bool) -> bytes:
    """Messages as ghz reads them: one as it is, those of a stream with their lengths."""
    if not is_stream:
        return messages[0].SerializeToString()
    parts = [one.SerializeToString() for one in messages]
    return b"".join(_VarintBytes(len(part)) + part for part in parts)


def name_code(name: str) -> str:
    """GRPC's name of a code, from the one of Go."""
    return _CODES.get(name) or "".join(f"_{letter}" if letter.isupper() else letter for letter in name)[1:].upper()


if __name__ == "__main__":
    serve_rows("ghz", run, SHOWS)
