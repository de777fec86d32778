"""What a running server takes over of a changed settings file, and what it refuses."""

from pathlib import Path
from typing import cast

import pytest

from common.logs import Logger
from common.settings import CONFIG_VARIABLE, STOP_SECONDS_VARIABLE, load_settings
from inference.server.live_settings import LiveParts, LiveSettings
from inference.server.scheduling.admission import Drain
from inference.server.settings import ServerSettings
from tests.common.clock import KeptLog, SimClock

FILE = """
[watchdog]
stop_seconds = {stop}
[server]
drain_delay_seconds = {delay}
grace_seconds = {grace}
[runner]
retire_seconds = 10
[[models]]
name = "shapes"
"""


@pytest.mark.parametrize(
    ("told", "begun", "then", "refusal"),
    [
        ("60", (5, 30), (5, 100), "watchdog.stop_seconds: a drain may take 115 now, and the stack was started with"),
        ("60", (5, 30), (15, 35), "watchdog.stop_seconds: a drain may take 60 now"),
        ("60", (5, 30), (5, 44), ""),
        ("60", (5, 100), (5, 99), ""),  # it is too long already: a shorter one is better
        ("60", (5, 100), (5, 100), ""),
        (None, (5, 30), (5, 100), ""),  # without supervisord
    ],
)
async def test_a_drain_that_supervisord_would_cut_off_is_refused(
    told: str | None,
    begun: tuple[int, int],
    then: tuple[int, int],
    refusal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Supervisord was told `watchdog.stop_seconds` when it started, whatever the file says now."""
    file = tmp_path / "hotslot.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    monkeypatch.delenv(STOP_SECONDS_VARIABLE, raising=False)
    if told is not None:
        monkeypatch.setenv(STOP_SECONDS_VARIABLE, told)
    file.write_text(FILE.format(stop=60, delay=begun[0], grace=begun[1]))
    settings = load_settings(ServerSettings)
    live = LiveSettings(settings, cast("LiveParts", None), Drain(), SimClock(), cast("Logger", KeptLog()))
    file.write_text(FILE.format(stop=140, delay=then[0], grace=then[1]))

    found = await live.reload(check_only=True)
    assert found.refusal.startswith(refusal)
    assert bool(found.refusal) is bool(refusal)
