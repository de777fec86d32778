"""Makes one Java program of the blocks of a page: each is a method, and those that a reader can run as they stand are called."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dev.documents.blocks import ROOT, Block

MODULE = ROOT / "clients/java"
_IMPORTS = (
    *("java.io.File", "java.nio.file.*", "java.time.*", "java.util.*", "java.util.concurrent.*", "java.util.stream.*"),
    *("io.grpc.Metadata", "io.grpc.TlsChannelCredentials", "io.grpc.stub.MetadataUtils"),
)
_PROGRAM = """{imports}
public class Page {{
    static HotslotClient client;
    static byte[] picture;
    static List<Path> paths;
    static String token = "token";
{methods}
    public static void main(String[] arguments) throws Exception {{
        Path path = Path.of({picture});
        picture = Files.readAllBytes(path);
        paths = List.of(path);
        client = HotslotClient.builder("{address}").plaintext().build();
{calls}        client.close();
    }}
}}
"""


def make_program(blocks: Sequence[tuple[Block, str]], address: str, picture: Path) -> str:
    """The program; the first block of the page has the imports.

    Args:
        blocks: each with its text, as adapted.
        address: of the server, for what a page has shown before.
        picture: a file for the examples.
    """
    (_, imports), *bodies = blocks
    methods = "".join(
        f"    static void block{number}() throws Exception {{\n{body}    }}\n"
        for number, (_, body) in enumerate(bodies)
    )
    calls = "".join(
        f"        block{number}();\n" for number, (block, _) in enumerate(bodies) if block.note != "compiled"
    )
    more = "".join(f"import {name};\n" for name in _IMPORTS)
    return _PROGRAM.format(
        imports=imports + more, methods=methods, calls=calls, picture=json.dumps(str(picture)), address=address
    )


def make_command(program: str, folder: Path) -> list[str]:
    """The command that compiles and runs the program with the client's classes, which are built first."""
    subprocess.run([str(MODULE / "conformance"), "--build"], check=True)
    source = folder / "Page.java"
    source.write_text(program, "utf-8")
    jars = (MODULE / "target/conformance.classpath").read_text("utf-8").strip()
    return ["java", "-cp", f"{MODULE / 'target/classes'}:{jars}", str(source)]
