"""Of compared answers, those of which the slot that they are compared with is sure are counted apart."""

from datetime import UTC, datetime

from common.engine_files import Task
from inference.server.model.comparison import Comparison
from inference.server.request import NO_TAGS
from inference.wire import AddressSpan, EntailmentScores

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SURE_YES, UNSURE_YES, SURE_NO = (
    EntailmentScores(0.95, 0.03, 0.02),
    EntailmentScores(0.6, 0.3, 0.1),
    EntailmentScores(0.01, 0.98, 0.01),
)


def test_changes_of_sure_answers_are_counted_apart() -> None:
    """The other slot's own probability decides, not the judged one's."""
    counts = Comparison(Task.VISUAL_ENTAILMENT, "b", "a", NOW)
    counts.add(("1", "2", "3"), (SURE_NO, SURE_NO, UNSURE_YES), (SURE_YES, UNSURE_YES, SURE_YES), NO_TAGS)
    assert (counts.answers, counts.equal_answers) == (3, 1)
    assert (counts.sure_answers, counts.equal_sure_answers) == (2, 1)


def test_an_address_is_sure_if_all_of_its_parts_are() -> None:
    """One doubtful part makes the answer a doubtful one."""
    counts = Comparison(Task.ADDRESS_TAGGING, "b", "a", NOW)
    sure = (AddressSpan("prov", 0, 3, 0.99), AddressSpan("city", 3, 6, 0.95))
    unsure = (AddressSpan("prov", 0, 3, 0.99), AddressSpan("city", 3, 6, 0.5))
    counts.add(("浙江省杭州市", "浙江省杭州市"), (sure[:1], sure[:1]), (sure, unsure), NO_TAGS)
    assert (counts.answers, counts.equal_answers, counts.sure_answers, counts.equal_sure_answers) == (2, 0, 1, 0)
