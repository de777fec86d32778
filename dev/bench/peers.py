"""`make bench-peers`: what a call costs hotslot and other servers, with an engine that does nothing.

All servers share one core, the load generator has the other one; one server is called at a time, in turn, with the same
client. CPU time is that of all processes of a server. Logs and metrics are as each server has them by default.
"""

import argparse
import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dev.bench.peer_servers import (
    BARE,
    HOTSLOT,
    PEERS_PYTHON,
    SERVERS,
    TRITON,
    TRITON_FOLDER,
    Cpu,
    Server,
    end_on_sigterm,
    group_for,
    has_streams,
    running,
)
from dev.bench.server import seal
from dev.harness.answers import Question
from dev.harness.loadgen import play
from dev.harness.pointer import commit_bundle

SERVER_CORE, LOAD_CORE = 0, 1
SETTINGS = '[runner]\nextra_engines = { null = "dev.bench.null_engine:load" }\n'
SMALL, LARGE = 100_000, 8_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """A load."""

    mode: str
    clients: int
    size: int  # bytes of the picture

    @property
    def title(self) -> str:
        """For people."""
        size = f"{self.size // 1000} KB" if self.size < 1_000_000 else f"{self.size // 1_000_000} MB"
        callers = f"{self.clients} callers" if self.clients > 1 else "1 caller"
        return f"{'stream item' if self.mode == 'stream' else 'unary'}, {size}, {callers}"


CASES = [Case(mode, clients, SMALL) for mode in ("unary", "stream") for clients in (1, 16)]
CASES += [Case("unary", clients, LARGE) for clients in (1, 16)]


@dataclass(slots=True)
class Measured:
    """What a server did in all rounds of a case."""

    seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    cpu: Cpu = field(default_factory=lambda: Cpu(0.0))

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    def cpu_ms(self, seconds: float) -> float:
        """CPU seconds as ms an answer."""
        return 1000 * seconds / max(1, self.answered)


Found = dict[tuple[Case, str], Measured]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each load of a round")
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every server is called")
    parser.add_argument("--servers", nargs="*", default=SERVERS, help="which ones", choices=SERVERS)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of loads, from 0")
    options = parser.parse_args()
    end_on_sigterm()
    names = [name for name in options.servers if is_installed(name)]
    cases = [CASES[number] for number in options.cases]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), names, cases, options.rounds, options.seconds)
    print(f"machine load {os.getloadavg()[0]:.1f} at the end; {options.rounds} rounds of {options.seconds:g} s\n")
    print("\n".join(format_table(found)))
    for name in set(options.servers) - set(names):
        print(f"\n{name} is missing here: dev/scripts/peers-env installs it.")
    return 0


def is_installed(name: str) -> bool:
    """Whether a server can be started."""
    if name in (HOTSLOT, BARE):
        return True
    return TRITON_FOLDER.exists() if name == TRITON else PEERS_PYTHON.exists()


def measure(folder: Path, names: Sequence[str], cases: Sequence[Case], rounds: int, seconds: float) -> Found:
    """Start all servers, and call them in turn."""
    commit_bundle(folder / "state", seal(folder / "state"), "null")
    pictures = {size: os.urandom(size) for size in {case.size for case in cases}}
    found: Found = defaultdict(Measured)
    with contextlib.ExitStack() as opened:
        servers = [opened.enter_context(running(name, folder, SERVER_CORE, more=SETTINGS)) for name in names]
        for number in range(rounds + 1):
            for case in cases:
                question = Question(pictures[case.size], ("there are two red circles",))
                for server in servers:
                    if case.mode == "stream" and not has_streams(server.name):
                        continue
                    into = found[case, server.name] if number else Measured()  # the first round warms up
                    measure_one(folder, server, case, question, seconds if number else seconds / 4, into)
    return found


def measure_one(folder: Path, server: Server, case: Case, question: Question, seconds: float, into: Measured) -> None:
    """One load of a server."""
    group = group_for(server.name, [question], case.mode, case.clients)
    before = server.measure_cpu()
    played = play(server.address, [group], seconds, folder, connections=case.clients, processors=str(LOAD_CORE))
    into.cpu += server.measure_cpu() - before
    into.seconds += seconds
    answered = sum(one.is_answer for one in played.outcomes)
    into.answered += answered
    into.failed += len(played.outcomes) - answered


def format_table(found: Mapping[tuple[Case, str], Measured]) -> list[str]:
    """As Markdown, a row for each case and server, with ratios to bare grpc.aio."""
    lines = [
        "| load | server | calls/s | × bare | server CPU, ms a call | × bare | of which server, runner | failed |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (case, name), one in found.items():
        bare = found.get((case, BARE))
        total = one.cpu_ms(one.cpu.total)
        rate, cost = "", ""
        if bare is not None and bare.answered:
            rate = f"{one.per_second / bare.per_second:.2f}"
            cost = f"{total / bare.cpu_ms(bare.cpu.total):.2f}"
        parts = f"{one.cpu_ms(one.cpu.server):.3f}, {one.cpu_ms(one.cpu.runners):.3f}" if one.cpu.runners else ""
        cells = (case.title, name, f"{one.per_second:.0f}", rate, f"{total:.3f}", cost, parts, str(one.failed))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
