"""Makes one Go program of the blocks of a page: each is a function, and those that a reader can run as they stand are called."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dev.documents.blocks import ROOT, Block

MODULE = ROOT / "clients/go"
_FOLDER = "docspage"  # exists only in the overlay
_IMPORTS = {
    "context": "context",
    "errors": "errors",
    "fmt": "fmt",
    "os": "os",
    "time": "time",
    "metadata": "google.golang.org/grpc/metadata",
    "hotslot": "hotslot.io/client-go/hotslot",
}
_DECLARED = re.compile(r"^(\w+(?:, \w+)*) :=", re.MULTILINE)
_FUNCTION = """
func block{number}(ctx context.Context, client *hotslot.Client) error {{
{body}
{uses}
	return nil
}}
"""
_MAIN = """
var token = "token"
var picture, _ = os.ReadFile({picture})
var paths = []string{{{picture}}}
var request = hotslot.PredictRequest{{Picture: picture, Statements: []string{{"there is a red circle"}}}}

func main() {{
	client, err := hotslot.New("{address}", hotslot.WithPlaintext())
	if err != nil {{
		panic(err)
	}}
	for _, run := range []func(context.Context, *hotslot.Client) error{{{called}}} {{
		if err := run(context.Background(), client); err != nil {{
			panic(err)
		}}
	}}
	_ = []any{{{named}}}
}}
"""


def make_program(blocks: Sequence[tuple[Block, str]], address: str, picture: Path) -> str:
    """The program.

    Args:
        blocks: each with its text, as adapted.
        address: of the server, for what a page has shown before.
        picture: a file for the examples.
    """
    text = "".join(_make_function(number, body) for number, (_, body) in enumerate(blocks))
    names = [f"block{number}" for number in range(len(blocks))]
    called = [name for name, (block, _) in zip(names, blocks, strict=True) if block.note != "compiled"]
    text += _MAIN.format(
        picture=json.dumps(str(picture)), address=address, called=", ".join(called), named=", ".join(names)
    )
    imports = "".join(f'\t"{path}"\n' for name, path in _IMPORTS.items() if re.search(rf"\b{name}\.", text))
    return f"package main\n\nimport (\n{imports})\n{text}"


def _make_function(number: int, body: str) -> str:
    declared = {name for names in _DECLARED.findall(body) for name in names.split(", ")} - {"_"}
    uses = "".join(f"\t_ = {name}\n" for name in sorted(declared))
    return _FUNCTION.format(number=number, body=body, uses=uses)


def make_command(program: str, folder: Path) -> list[str]:
    """The command that compiles and runs the program, as if it lay in the client's module; run it in the module."""
    source, overlay = folder / "page.go", folder / "overlay.json"
    source.write_text(program, "utf-8")
    overlay.write_text(json.dumps({"Replace": {str(MODULE / _FOLDER / "main.go"): str(source)}}), "utf-8")
    return ["go", "run", "-overlay", str(overlay), f"./{_FOLDER}"]
