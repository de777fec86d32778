"""The exhaustive crash model holds, and notices when a defence is taken out."""

import sys

import pytest

from tests.updater.core import crash_mutations
from tests.updater.core.crash_model import all_worlds, explore
from updater.core.record import Stage
from updater.stages.machine import TRANSITIONS

# Of what the small worlds do not have: another converter, bundles lost on disk, unusable listings.
_ELSEWHERE = {
    (Stage.IDLE, Stage.VERIFYING),
    (Stage.GATING, Stage.STAGING),
    (Stage.STAGING, Stage.ROLLING_BACK),
    (Stage.HELD, Stage.VERIFYING),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.fault("K1")
def test_no_crash_at_any_boundary_breaks_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """Every crash of either process at every boundary, with all kinds of revisions and operators."""
    report = explore(all_worlds())
    with capsys.disabled():
        sys.stdout.write(f"\nthe crash model: {report.states:,} states, {report.edges:,} steps between them\n")

    assert report.violations == {}
    assert report.states > 250_000  # the worlds have not become smaller
    allowed = {(stage, after) for stage, stages in TRANSITIONS.items() for after in stages}
    assert allowed - report.transitions == _ELSEWHERE  # every other one is taken in some world


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", crash_mutations.ALL)
def test_a_defence_taken_out_is_noticed(name: str) -> None:
    """A model that cannot fail proves nothing."""
    with crash_mutations.ALL[name]():
        report = explore(crash_mutations.worlds(all_worlds(), name))

    assert report.violations
