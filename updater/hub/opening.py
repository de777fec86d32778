"""A configured hub, put together. Imported where one is configured: it brings an HTTP library and the hub's client."""

from collections.abc import Callable

from modelscope_hub.constants import DEFAULT_ENDPOINT

from common.clock import Clock
from updater.hub.client import HubHttpClient, HubHttpRules
from updater.hub.modelscope import ModelScopeHub
from updater.hub.settings import TokenSource, proxy_for
from updater.settings import UpdaterSection, checked_endpoint


def open_hub(section: UpdaterSection, model: str, clock: Clock, is_release: Callable[[str], bool]) -> ModelScopeHub:
    """The hub of one model; nothing is asked yet.

    Args:
        section: `[updater]`.
        model: OWNER/NAME.
        clock: measures.
        is_release: whether a name looks like a release.
    """
    rules = HubHttpRules(
        endpoint=section.hub_endpoint or checked_endpoint(DEFAULT_ENDPOINT),
        private_hosts=frozenset(host.lower() for host in section.hub_private_hosts),
        ca_file=section.hub_ca_file,
        connect_seconds=section.hub_connect_seconds,
        stall_seconds=section.hub_stall_seconds,
    )
    token = TokenSource(section.hub_token_file, section.hub_token_variable)
    return ModelScopeHub(HubHttpClient(rules, clock, token, proxy_for), model, clock, is_release)
