"""The rows of docs/explanation/decisions/out-of-memory.md on a card that is really full, with the demo model.

What is simulated in tests/server/test_out_of_memory.py happens here: another program takes the card to the last
piece, and the engine asks the driver for memory in every call. At which allocation a shortage is met is the driver's
business; what follows is ours.
"""

import signal
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from common.bundle import Bundle
from dev.harness.answers import Question, scores_of
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from tests.gpu.conftest import SHAPES
from tests.gpu.filler import Filler
from tests.stack.refusal import refusal_of

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.fault("K14"), pytest.mark.timeout(60)]

CARD, CPU = "cuda:0", "cpu"
LIMIT_SECONDS = 20.0
CLOSE = 0.05  # between scores of two devices and precisions
PICTURE = (SHAPES / "pictures" / "two-red-circles.png").read_bytes()
Sealed = tuple[Path, Mapping[str, Bundle]]
STATEMENTS = ("there are two red circles.", "there are three blue squares.")


def ask(stack: Stack, count: int = 2) -> tuple[str, list[float]]:
    """Device and scores of an answer; an error fails the test."""
    statements = tuple(STATEMENTS[number % 2] for number in range(count))
    response = stack.predict(Question(PICTURE, statements), timeout=60.0)
    rows = scores_of(response)
    assert len(rows) == count
    assert all(abs(sum(row) - 1) < CLOSE for row in rows)
    return response.served_by.device, [score for row in rows for score in row]


def fill_until_on_cpu(stack: Stack, filler: Filler) -> None:
    """Allocate the memory that the runner frees, until a single item does not fit; every call is answered."""

    def is_on_cpu() -> bool:
        filler.fill()
        return ask(stack, count=32)[0] == CPU

    eventually(is_on_cpu, LIMIT_SECONDS, "the card is full")


def fallback_of(stack: Stack) -> tuple[str, str]:
    """The current fallback; empty if there is none."""
    row = stack.control.status().cpu_fallback
    return row.device, row.fallback_device


def test_a_boot_on_a_full_card_serves_from_the_cpu(idle: Stack, filler: Filler) -> None:
    """By the plan, by the load or by the device's context: whatever does not fit first."""
    filler.fill()
    idle.start(until_ready=False)
    eventually(idle.is_serving, LIMIT_SECONDS, "it serves from the CPU")

    assert ask(idle)[0] == CPU
    assert fallback_of(idle) == (CARD, CPU)


@pytest.mark.fault("S4")
def test_a_candidate_that_does_not_fit_leaves_the_active_model_alone(
    served: Stack, filler: Filler, sealed: Sealed
) -> None:
    """It is refused with the numbers; the process that answers is not touched."""
    pid = served.active_pid()
    filler.fill()

    with pytest.raises(grpc.RpcError) as error:
        served.control.load(sealed[1]["v1.1.0"].bundle_digest, CARD)

    refusal = refusal_of(error.value)
    assert (refusal.code, refusal.metadata["device"]) == ("RESOURCE_EXHAUSTED", CARD)
    assert refusal.reason in ("DOES_NOT_FIT", "OUT_OF_MEMORY")
    assert (served.active_pid(), served.is_serving()) == (pid, True)


def test_a_trial_on_a_card_that_fills_up_costs_no_answer(served: Stack, filler: Filler, sealed: Sealed) -> None:
    """Whichever of the two runs out first: the callers are answered, the committed revision answers at the end."""
    served.control.trial(sealed[1]["v1.1.0"].bundle_digest)

    fill_until_on_cpu(served, filler)

    state = served.control.status()
    assert (state.last_trial.outcome, state.last_trial.reason) in {
        ("ROLLED_BACK", "OUT_OF_MEMORY"),
        ("YIELDED", "OUT_OF_MEMORY"),
    }
    assert (served.control.active().revision, fallback_of(served)) == ("v1.0.0", (CARD, CPU))


@pytest.mark.fault("B11")
def test_a_card_that_fills_up_costs_no_answer_and_serves_again_when_it_is_free(served: Stack, filler: Filler) -> None:
    """Batches are split; at a single item the CPU takes over, with the same answers, and a restart stays there.

    No second shortage at the start; a return is refused while there is no room, and ends the fallback after.
    """
    device, before = ask(served)
    assert device == CARD

    fill_until_on_cpu(served, filler)

    _, after = ask(served)
    assert max(abs(one - two) for one, two in zip(before, after, strict=True)) < CLOSE
    assert (served.is_serving(), fallback_of(served)) == (True, (CARD, CPU))
    served.wait_calm()

    served.hang_up()
    served.process.send(signal.SIGKILL)
    served.process.wait_gone()
    served.start()

    assert ask(served)[0] == CPU
    assert not served.process.events("load_failed")
    filler.fill()  # what the runner on the card had
    digest = served.control.active().bundle_digest
    with pytest.raises(grpc.RpcError) as error:
        served.control.load(digest, CARD)
    assert refusal_of(error.value).code == "RESOURCE_EXHAUSTED"
    served.wait_calm()

    filler.release()
    (*_, loaded) = served.control.load(digest, CARD)
    served.control.activate(loaded.load_id)
    assert not served.control.commit(loaded.load_id).HasField("cpu_fallback")
    assert ask(served)[0] == CARD
