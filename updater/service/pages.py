"""Pages of lists, as requests ask for them."""

from typing import Protocol

from common.errors import InputRefused

_MAX_TOKEN_DIGITS = 18


class PageRequest(Protocol):
    """The fields of a list request that choose its page."""

    page_size: int
    page_token: str


def read_page(request: PageRequest, default: int, most: int) -> tuple[int, int]:
    """The size of a page, and the number in its token; 0 without one.

    Raises:
        InputRefused: the size is beyond `most`, or the token is none of ours.
    """
    size, token = request.page_size or default, request.page_token
    if not 1 <= size <= most:
        raise InputRefused(f"page_size must be 1 to {most}, not {size}", field="page_size")
    if token and not (token.isdecimal() and len(token) <= _MAX_TOKEN_DIGITS):
        raise InputRefused("page_token is invalid", field="page_token")
    return size, int(token or 0)
