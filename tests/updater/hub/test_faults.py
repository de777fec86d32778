"""What a failure of the HTTP client means for an update."""

import pytest

from updater.core.ports import LinkBroken
from updater.http.client import HttpFailed, HttpFailure
from updater.hub.client import classify_failure

IN_THE_MIDDLE = {HttpFailure.STALLED, HttpFailure.BROKE_OFF, HttpFailure.RESPONSE_TRUNCATED}


@pytest.mark.parametrize("failure", HttpFailure)
def test_every_http_failure_is_classified(failure: HttpFailure) -> None:
    """Only a broken connection is resumed at once."""
    effect = classify_failure(HttpFailed(failure, "detail"), "hub.example")
    assert effect.failure.reason
    assert "{" not in effect.failure.message
    assert isinstance(effect, LinkBroken) is (failure in IN_THE_MIDDLE)
