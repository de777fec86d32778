"""The drill: every fault is provoked on the real stack; its alert must fire in the real Prometheus and reach the chat.

    python -m dev.watch.drill [--only NAME ...]

Windows, pauses and ages of the rules are seconds here; what they compare stays the same. Then the first command of the
alert's runbook must show the cause.
"""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cli.monitoring.catalog import list_alerts
from dev.harness.process import ROOT
from dev.watch import drill_serving, drill_updates
from dev.watch.drill_faults import DrillFault
from dev.watch.drill_stack import DrillStack, drill_stack, run_command

CALM_SECONDS = 180.0  # for the stack to recover from the fault before
LOGS = ROOT / ".bench" / "drill"
CARD = {"SCRIPTED_DEVICES": "cuda:0,cpu", "SCRIPTED_CARD_USED": str(int(0.97 * (80 << 30)))}


@dataclass(frozen=True, slots=True)
class DrillRow:
    """What became of one alert."""

    alert: str
    fault: str
    fired: str  # seconds, or what was wrong
    told: str
    command: str
    is_good: bool


def drill_fault(drill: DrillStack, fault: DrillFault) -> Iterator[DrillRow]:
    """Provoke one fault; a row for each of its alerts."""
    for name in () if fault.is_from_start else fault.alerts:  # of a fault before
        with contextlib.suppress(TimeoutError):
            drill.wait_quiet(name)
    first = 0 if fault.is_from_start else len(drill.chat.messages)
    fired: dict[str, str] = {}
    shown: dict[str, bool] = {}
    with contextlib.suppress(AssertionError):
        drill.stack.wait(drill.stack.is_serving, "the stack serves", CALM_SECONDS)
    begun, at = time.monotonic(), time.time()
    with fault.provoke(drill):
        provoked = time.time()
        for name, word in fault.alerts.items():
            fired[name] = _try(lambda name=name: drill.wait_firing(name, at, provoked))
            output = run_command(drill, drill.alert(name).command)
            shown[name] = word.lower() in output.lower()
            if not shown[name]:
                print(f"{name}: {word!r} is not in {output[:1500]!r}", file=sys.stderr)
        told = {} if fault.told_late else _tell_all(drill, fault, first)
    if fault.told_late:
        told = _tell_all(drill, fault, first)
    for name in fault.alerts:
        command = f"`{drill.alert(name).command}`" + ("" if shown[name] else " does not show it")
        is_good = fired[name][0].isdigit() and told[name][0].isdigit() and shown[name]
        yield DrillRow(name, fault.what, fired[name], told[name], command, is_good)
    print(f"{fault.what}: {time.monotonic() - begun:.0f} s", file=sys.stderr)


def _tell_all(drill: DrillStack, fault: DrillFault, first: int) -> dict[str, str]:
    return {name: _try(lambda name=name: drill.wait_told(name, first)) for name in fault.alerts}


def _try(wait: object) -> str:
    try:
        return f"{wait():.0f} s"  # type: ignore[operator]
    except TimeoutError:
        return "not"


def run_group(
    stack: AbstractContextManager[DrillStack], faults: Sequence[DrillFault], only: Sequence[str]
) -> Iterator[DrillRow]:
    """Provoke faults on one stack."""
    chosen = [fault for fault in faults if not only or set(only) & {*fault.alerts}]
    if not chosen:
        return
    begun = False
    try:
        with stack as drill, _keeping_logs(drill):
            begun = True
            yield from _drill_all(drill, chosen)
    except Exception as error:  # noqa: BLE001  the other groups are still to be drilled
        what = f"not: the stack did not {'end' if begun else 'start'}: {type(error).__name__} {error}"[:160]
        print(what, file=sys.stderr)
        if not begun:
            for fault in chosen:
                yield from (DrillRow(name, fault.what, what, "not", "", is_good=False) for name in fault.alerts)


def _drill_all(drill: DrillStack, faults: Sequence[DrillFault]) -> Iterator[DrillRow]:
    """One fault after the other; one that cannot be provoked does not keep the others from it."""
    for fault in faults:
        try:
            yield from drill_fault(drill, fault)
        except Exception as error:  # noqa: BLE001  the others are still to be drilled
            why = f"not: {type(error).__name__} {error}"[:120]
            yield from (DrillRow(name, fault.what, why, "not", "", is_good=False) for name in fault.alerts)


@contextlib.contextmanager
def _keeping_logs(drill: DrillStack) -> Iterator[None]:
    """Copy the logs of the stack and the relay, so that they can be read when the drill is over."""
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        number = len(list(LOGS.glob("stack-*.log"))) + 1
        shutil.copy(drill.stack.log_path, LOGS / f"stack-{number}.log")
        shutil.copy(drill.folder / "relay.log", LOGS / f"relay-{number}.log")


def run_drill(only: Sequence[str]) -> Iterator[DrillRow]:
    """All groups, each on a stack of its own."""
    yield from run_group(drill_stack(), drill_updates.FAULTS, only)
    with contextlib.ExitStack() as exits:
        served = drill_updates.HttpHub(exits)
        yield from run_group(drill_stack(served.sections, more=served.webhooks), served.faults(), only)
    access = drill_stack(drill_updates.secured, prepare=drill_updates.small_disk)
    yield from run_group(access, drill_updates.ACCESS_FAULTS, only)
    yield from run_group(drill_stack(environment=CARD), drill_serving.CARD_FAULTS, only)
    yield from run_group(drill_stack(drill_serving.settings, is_limited=True), drill_serving.FAULTS, only)


def main() -> int:
    """Print the table; 1 if an alert was not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="ALERT")
    only = parser.parse_args().only
    print("| alert | fault | fires after | in the chat after | first command shows the cause |\n|---|---|---|---|---|")
    rows = []
    for row in run_drill(only):
        rows.append(row)
        print(f"| {row.alert} | {row.fault} | {row.fired} | {row.told} | {row.command} |", flush=True)
    seen = {row.alert for row in rows}
    missing = [] if only else [alert.name for alert in list_alerts() if alert.name not in seen]
    good = sum(row.is_good for row in rows)
    print(f"\n{good} of {len(rows)} alerts seen, told and explained" + (f"; missing: {missing}" if missing else ""))
    return 0 if good == len(rows) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
