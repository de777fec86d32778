"""docs/how-to/tls-and-tokens.md: its commands run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import grpc

from dev.harness.control import CHANNEL_OPTIONS
from dev.harness.process import ROOT, stack_environment
from dev.harness.stack import ENTAILMENT, Stack

PAGE = ROOT / "docs" / "how-to" / "tls-and-tokens.md"
LIMIT_SECONDS = 60


def test_the_commands_run_as_pasted(grpcurl: Path, tmp_path: Path) -> None:
    """From the CA to the calls, token included; only the port is another one."""
    (tmp_path / "state").mkdir()
    (tmp_path / "bin").mkdir()
    path = os.pathsep.join((str(tmp_path / "bin"), str(grpcurl.parent), os.environ["PATH"]))
    script = f'#!/bin/sh\nexec {sys.executable} -m cli.main "$@"\n'
    (tmp_path / "bin" / "hotslot").write_text(script)
    (tmp_path / "bin" / "hotslot").chmod(0o755)
    environment = {**stack_environment("", {"PATH": path})}
    for name in [name for name in environment if name.startswith("HOTSLOT_")]:
        del environment[name]

    def paste(block: str) -> str:
        done = subprocess.run(
            ["/usr/bin/env", "bash", "-e"],
            input=block,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    certificate, token, settings, calls = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    paste(certificate)
    assert "shop-backend" in paste(token)
    stack = Stack(tmp_path / "state", server={"tokens_file": str(tmp_path / "tokens")})
    stack.add_settings({"tls": {"certificate_file": str(tmp_path / "tls.crt"), "key_file": str(tmp_path / "tls.key")}})
    trust = grpc.ssl_channel_credentials((tmp_path / "ca.crt").read_bytes())
    stack.open_channel = lambda address: grpc.secure_channel(address, trust, options=CHANNEL_OPTIONS)
    with stack:
        assert "access TLS, tokens" in " ".join(paste(settings).split())
        environment["HOTSLOT_SERVER__PORT"] = str(stack.port)
        shown = paste(calls.replace(":50051", f":{stack.port}"))
    assert shown.count("certificate for") == 2
    assert ENTAILMENT in shown
