"""What an error that a caller gets must look like."""

import re

from common.errors import HotslotError, to_status

REASONS = {
    *("MESSAGE_MALFORMED", "IMAGE_MISSING", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE", "STATEMENTS_MISSING"),
    *("STATEMENTS_TOO_MANY", "STATEMENT_EMPTY", "STATEMENT_TOO_LONG", "PREMISE_EMPTY", "PREMISE_TOO_LONG"),
    *("ITEMS_MISSING", "ITEMS_TOO_MANY", "ITEM_ID_MISSING", "ITEM_ID_TOO_LONG", "ITEM_ID_DUPLICATE"),
    *("ADDRESSES_MISSING", "ADDRESSES_TOO_MANY", "ADDRESS_EMPTY", "ADDRESS_TOO_LONG"),
}
_FIELD = re.compile(
    r"|image\.content|statements(\[([0-9]|[12][0-9]|3[01])\])?|premise|items|item_id|addresses(\[[0-9]{1,2}\])?"
)
MAX_MESSAGE = 500  # characters


def check_refusal(error: HotslotError) -> None:
    """Check the error of an invalid request: documented, short, printable, and it fits into a status."""
    message = str(error)
    assert error.reason in REASONS, error.reason
    assert _FIELD.fullmatch(error.field), error.field
    assert error.field or error.reason == "MESSAGE_MALFORMED"
    assert message.isprintable(), ascii(message)
    assert 0 < len(message) <= MAX_MESSAGE
    assert to_status(error).SerializeToString()
