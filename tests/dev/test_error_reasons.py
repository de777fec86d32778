"""docs/error-reasons.md names every reason that the code raises, with its code, and no other."""

from dev.scripts.error_reasons import ADVICE, ROOT, page, reasons_raised

# The default of a class that no public call raises.
NOT_PUBLIC = {"ENGINE_NOT_AVAILABLE"}


def test_every_reason_has_advice() -> None:
    """What a caller can meet is in the table; what is in the table can be met."""
    raised = set(reasons_raised()) - NOT_PUBLIC

    assert raised - set(ADVICE) == set()
    assert set(ADVICE) - raised == set()


def test_the_codes_are_those_of_the_code() -> None:
    """Where the place that raises shows its class."""
    wrong = {
        reason: codes
        for reason, codes in reasons_raised().items()
        if reason in ADVICE and codes and ADVICE[reason][0] not in codes
    }
    assert wrong == {}


def test_the_page_is_fresh() -> None:
    """If this fails: `python -m dev.scripts.error_reasons > docs/error-reasons.md`."""
    assert (ROOT / "docs" / "error-reasons.md").read_text(encoding="utf-8") == page()
