"""Callers: how they are found, which rights they have."""

import pytest

from inference.server.api.interceptors import MAX_NAME_CHARS, Callers
from inference.server.request import Flow, Priority
from inference.server.scheduling.fair_queue import Caller, CallerRules, Quota


def test_a_caller_is_its_connection_without_a_metadata_key() -> None:
    """What a caller writes into its metadata decides nothing then."""
    callers = Callers([], "", 0.0)
    assert callers.find([("tenant", "shop")], "ipv4:10.0.0.1:5000").name == "ipv4:10.0.0.1:5000"


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ([("x-tenant", "shop")], "shop"),
        ([("x-tenant", b"shop")], "shop"),
        ([("x-tenant", "")], "peer"),
        ([], "peer"),
        ([("x-tenant", "vip"), ("x-tenant", "shop")], "peer"),
        ([("x-tenant", "shop"), ("x-tenant", ""), ("x-tenant", "shop")], "shop"),
        ([("x-tenant", "a" * 500)], "a" * MAX_NAME_CHARS),
    ],
)
def test_a_caller_is_named_by_the_configured_metadata_key(metadata: list[tuple[str, str | bytes]], name: str) -> None:
    """Behind a proxy; the name is bounded, and a call without one, or with several, falls back to its connection."""
    assert Callers([], "X-Tenant", 0.0).find(metadata, "peer").name == name


@pytest.mark.parametrize(
    ("token", "certificate", "metadata", "name"),
    [
        ("", "batch", [("x-tenant", "vip")], "batch"),
        ("", "envoy", [("x-tenant", "vip")], "vip"),
        ("", "envoy", [], "envoy"),
        ("", "envoy", [("x-tenant", "vip"), ("x-tenant", "shop")], "envoy"),
        ("shop", "envoy", [("x-tenant", "vip")], "shop"),
        ("shop", "batch", [], "shop"),
    ],
)
def test_a_certificate_goes_before_the_metadata_key_unless_it_is_a_proxys(
    token: str, certificate: str, metadata: list[tuple[str, str | bytes]], name: str
) -> None:
    """A caller with a certificate of its own uses no other's quota; a proxy tells its callers, a token proves one."""
    callers = Callers([], "x-tenant", 0.0, ["envoy"])
    assert callers.find(metadata, "peer", token, certificate).name == name


def test_unary_calls_are_interactive_and_streams_are_bulk() -> None:
    """Each stream is a flow, all unary calls are one."""
    caller = Caller(CallerRules("shop", weight=2.0))
    assert caller.unary_source.flow == Flow(Priority.INTERACTIVE, "shop", 2.0, 0)
    assert caller.stream_flow(7) == Flow(Priority.BULK, "shop", 2.0, 7)


def test_a_configured_priority_holds_for_unary_calls_and_streams() -> None:
    """A nightly job that calls Predict is bulk, an interactive stream is interactive."""
    rules = [CallerRules("nightly", Priority.BULK), CallerRules("live", Priority.INTERACTIVE)]
    callers = Callers(rules, "tenant", 0.0)
    assert callers.find([("tenant", "nightly")], "").unary_source.flow.priority is Priority.BULK
    assert callers.find([("tenant", "live")], "").stream_flow(1).priority is Priority.INTERACTIVE


def test_a_quota_is_shared_by_all_calls_of_a_caller() -> None:
    """Also over several connections."""
    callers = Callers([CallerRules("shop", rows_per_second=10.0)], "tenant", 0.0)
    callers.find([("tenant", "shop")], "one").use_quota(10, 0.0)
    assert callers.find([("tenant", "shop")], "two").quota_wait(0.0) > 0
    assert callers.find([("tenant", "other")], "two").quota_wait(0.0) == 0.0


def test_a_reload_forgives_no_debt() -> None:
    """Rows that were used ahead stay used, with the same settings and with another rate."""
    callers = Callers([CallerRules("shop", rows_per_second=10.0)], "tenant", 0.0)
    callers.find([("tenant", "shop")], "one").use_quota(1000, 0.0)
    callers.configure([CallerRules("shop", rows_per_second=10.0)], "tenant", 0.0)
    assert callers.find([("tenant", "shop")], "one").quota_wait(0.0) == pytest.approx(99.0, abs=0.01)
    callers.configure([CallerRules("shop", rows_per_second=99.0)], "tenant", 0.0)
    assert callers.find([("tenant", "shop")], "one").quota_wait(0.0) == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("before", [[], [CallerRules("shop", rows_per_second=1000.0)]])
def test_open_streams_have_the_rights_of_the_settings_in_use(before: list[CallerRules]) -> None:
    """They share the quota with new calls, whether there was another one before or none; without one there is none."""
    callers = Callers(before, "tenant", 0.0)
    stream = callers.find([("tenant", "shop")], "one")
    callers.configure([CallerRules("shop", Priority.BULK, 3.0, rows_per_second=1.0)], "tenant", 0.0)
    stream.use_quota(50, 0.0)
    new = callers.find([("tenant", "shop")], "two")
    assert new.quota_wait(0.0) == stream.quota_wait(0.0) > 40
    assert (stream.stream_flow(1), new.unary_source.flow.weight) == (Flow(Priority.BULK, "shop", 3.0, 1), 3.0)
    callers.configure([], "tenant", 0.0)
    assert stream.quota_wait(0.0) == 0.0
    assert stream.stream_flow(1) == Flow(Priority.BULK, "shop", 1.0, 1)
    assert callers.find([("tenant", "shop")], "two").unary_source.flow == Flow(Priority.INTERACTIVE, "shop")


def test_a_quota_is_held_over_time() -> None:
    """A caller that comes back when it is told uses its rate and no more, in requests of any size."""
    quota, now, used = Quota(20.0, 0.0), 0.0, 0
    while now < 60.0:
        quota.use(32, now)
        used += 32
        now += quota.wait_seconds(now)
    assert used / now == pytest.approx(20.0, rel=0.05)
