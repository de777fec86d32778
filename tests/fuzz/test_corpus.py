"""Inputs that `make fuzz` has found and kept; the ones that once broke a target are among them."""

import pytest

from tests.fuzz.target import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_kept_inputs_break_nothing(target: Target) -> None:
    """Each input of the corpus passes the target's check."""
    check = target.load_check()
    corpus = target.read_corpus()

    for name, data in corpus.items():
        try:
            check(data)
        except Exception as error:
            error.add_note(f"input {name} of {target.name}: {data!r}")
            raise

    assert corpus != {}


def test_the_corpus_is_small() -> None:
    """All kept inputs together have less than a megabyte."""
    assert sum(target.corpus_file.stat().st_size for target in TARGETS.values()) < 1_000_000
