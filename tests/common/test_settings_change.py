"""What a changed settings file changes, and what each change needs."""

from pathlib import Path
from typing import Any

import pytest

from cli.config import list_settings
from common.settings import CONFIG_VARIABLE, Change, load_settings
from common.settings_change import ReloadPlan, plan_reload
from inference.server.settings import ServerSettings
from updater.models import settings_of_models
from updater.settings import UpdaterSettings

FILE = """
[[models]]
name = "shapes"
[[models]]
name = "more"
device = "cpu"
[server]
port = 50051
max_statement_chars = 100
[runner]
threads = 1
[[callers]]
name = "shop"
[updater]
hub_endpoint = "https://hub.example"
[updater.models.shapes]
hub_folder = "hub"
[updater.models.more]
hub_folder = "hub"
[[updater.webhooks]]
url = "https://example.com/secret-path"
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Plans the change of the file for the server, or for the updater."""
    file = tmp_path / "hotslot.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))

    def make(old: str, new: str, *, for_updater: bool = False) -> ReloadPlan:
        kind = UpdaterSettings if for_updater else ServerSettings
        loaded: list[Any] = []
        for text in (FILE, FILE.replace(old, new)):
            file.write_text(text, encoding="utf-8")
            loaded.append(load_settings(kind))
        models = (settings_of_models(loaded[0]), settings_of_models(loaded[1])) if for_updater else None
        return plan_reload(loaded[0], loaded[1], models)

    return make


def rows(plan: ReloadPlan) -> list[tuple[str, str, str, str]]:
    """The changes as plain rows."""
    return [(one.key, one.before, one.after, one.needs.value) for one in plan.changes]


def test_a_limit_changes_at_once(plan: Any) -> None:  # noqa: ANN401
    """No model is touched."""
    found = plan("max_statement_chars = 100", "max_statement_chars = 50")
    assert rows(found) == [("server.max_statement_chars", "100", "50", "at once")]
    assert (found.added, found.removed, found.changed, found.restarts) == ((), (), (), ())


def test_a_model_that_is_gone_is_removed_and_a_new_one_added(plan: Any) -> None:  # noqa: ANN401
    """The others stay as they are."""
    found = plan('name = "more"\ndevice = "cpu"', 'name = "other"\nprecision = "float32"')
    assert rows(found) == [
        ("models.more", '{ device = "cpu" }', "none", "models"),
        ("models.other", "none", '{ precision = "float32" }', "models"),
    ]
    assert (found.added, found.removed, found.changed) == (("other",), ("more",), ())


def test_a_setting_of_one_model_changes_that_model(plan: Any) -> None:  # noqa: ANN401
    """By its name, not by its place in the list."""
    found = plan('device = "cpu"', 'device = "auto"')
    assert rows(found) == [("models.more.device", '"cpu"', '"auto"', "models")]
    assert found.changed == ("more",)


def test_a_setting_of_all_runners_changes_all_models(plan: Any) -> None:  # noqa: ANN401
    """Each is replaced."""
    found = plan("threads = 1", "threads = 2")
    assert rows(found) == [("runner.threads", "1", "2", "models")]
    assert found.changed == ("shapes", "more")


def test_an_address_needs_a_restart(plan: Any) -> None:  # noqa: ANN401
    """It is named."""
    found = plan("port = 50051", "port = 50052")
    assert found.restarts == ("server.port",)


def test_a_section_of_another_process_changes_nothing(plan: Any) -> None:  # noqa: ANN401
    """The server does not read the updater's policy, nor the updater a limit."""
    assert plan('hub_folder = "hub"', 'hub_folder = "other"').changes == ()
    assert plan("max_statement_chars = 100", "max_statement_chars = 50", for_updater=True).changes == ()


def test_a_caller_is_compared_by_name(plan: Any) -> None:  # noqa: ANN401
    """Added, removed, or changed."""
    found = plan('[[callers]]\nname = "shop"', '[[callers]]\nname = "bank"\n[[callers]]\nname = "shop"\nweight = 2.0')
    assert rows(found) == [("callers.shop.weight", "1.0", "2.0", "at once"), ("callers.bank", "none", "{}", "at once")]


def test_a_policy_changes_the_loop_of_its_model(plan: Any) -> None:  # noqa: ANN401
    """The update of another model goes on."""
    found = plan(
        '[updater.models.more]\nhub_folder = "hub"',
        '[updater.models.more]\nhub_folder = "hub"\npolicy = { deny = ["v2"] }',
        for_updater=True,
    )
    assert rows(found) == [("updater.models.more.policy.deny", "[]", '["v2"]', "models")]
    assert found.changed == ("more",)


def test_the_hub_changes_all_loops(plan: Any) -> None:  # noqa: ANN401
    """It is theirs in common."""
    assert plan("hub.example", "other.example", for_updater=True).changed == ("shapes", "more")


def test_a_webhook_needs_a_restart_and_shows_no_address(plan: Any) -> None:  # noqa: ANN401
    """Its path may be a secret."""
    found = plan("secret-path", "other-secret", for_updater=True)
    assert rows(found) == [("updater.webhooks", "1 tables", "1 tables", "restart")]


def test_a_model_that_is_no_longer_updated_loses_its_loop(plan: Any) -> None:  # noqa: ANN401
    """The server may still serve it."""
    found = plan('[updater.models.more]\nhub_folder = "hub"\n', "", for_updater=True)
    assert (found.added, found.removed, found.changed) == ((), ("more",), ())


def test_every_setting_says_what_its_change_needs() -> None:
    """The reference has it; a setting without a mark needs a restart, so none changes without a decision."""
    needs = {row.key: row.needs for row in list_settings()}
    assert set(needs.values()) == set(Change)
    assert needs["state_dir"] is Change.RESTART
    assert needs["runner.silence_seconds"] is Change.MODELS
    assert needs["updater.models.NAME.gate.min_agreement"] is Change.MODELS
