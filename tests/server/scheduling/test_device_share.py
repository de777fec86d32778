"""The seconds of a device are shared by the models on it."""

import pytest

from inference.server.scheduling.device_share import DeviceShare, Sharer


class Model:
    """A model that has more to compute whenever it may."""

    def __init__(self, share: DeviceShare, call_seconds: float) -> None:
        self.call_seconds = call_seconds
        self.woken = 0
        self.sharer: Sharer = share.join(self.wake)

    def wake(self) -> None:
        """Count."""
        self.woken += 1


def play(models: list[Model], seconds: float) -> list[float]:
    """Compute whatever may be sent, one call at a time and the shortest calls first; returns the seconds of each."""
    now, used = 0.0, [0.0] * len(models)
    for model in models:
        model.sharer.begin_waiting(now)
    while now < seconds:
        free = [index for index, model in enumerate(models) if model.sharer.may_send(now)]
        assert free, "the device is never left idle"
        chosen = min(free, key=lambda index: models[index].call_seconds)
        now += models[chosen].call_seconds
        used[chosen] += models[chosen].call_seconds
        models[chosen].sharer.add(models[chosen].call_seconds, now)
    return used


@pytest.mark.parametrize("calls", [(0.01, 0.01), (0.005, 1.0), (0.01, 0.02, 0.4)])
def test_models_get_equal_seconds_whatever_their_calls_last(calls: tuple[float, ...]) -> None:
    """A model of short calls and one of long calls share the device."""
    share = DeviceShare()
    used = play([Model(share, seconds) for seconds in calls], 60.0)
    assert max(used) - min(used) <= 2 * max(calls) + 0.2


def test_a_model_without_work_holds_nobody_back() -> None:
    """The device's seconds go to the model that has work."""
    share = DeviceShare()
    busy, idle = Model(share, 0.1), Model(share, 0.1)
    busy.sharer.begin_waiting(0.0)
    busy.sharer.add(50.0, 50.0)
    assert busy.sharer.may_send(50.0)
    idle.sharer.begin_waiting(50.0)
    assert idle.sharer.used_seconds == 50.0
    assert busy.sharer.may_send(50.0)


def test_a_model_that_is_ahead_waits_and_is_woken() -> None:
    """As soon as the other has caught up, or has no more work."""
    share = DeviceShare()
    ahead, behind = Model(share, 0.01), Model(share, 0.01)
    for model in (ahead, behind):
        model.sharer.begin_waiting(0.0)
    ahead.sharer.add(0.01, 0.1)
    ahead.sharer.used_seconds = 1.0
    assert not ahead.sharer.may_send(0.1)
    behind.sharer.end_waiting()
    assert ahead.sharer.may_send(0.1)


def test_a_model_that_computes_nothing_holds_nobody_back_for_long() -> None:
    """Its runner hangs or loads: the other goes on after a second."""
    share = DeviceShare()
    ahead, stuck = Model(share, 0.01), Model(share, 0.01)
    for model in (ahead, stuck):
        model.sharer.begin_waiting(0.0)
    ahead.sharer.used_seconds = 1.0
    assert not ahead.sharer.may_send(0.5)
    assert ahead.sharer.may_send(1.5)


def test_a_model_that_has_left_is_forgotten() -> None:
    """Its slot was emptied."""
    share = DeviceShare()
    ahead, gone = Model(share, 0.01), Model(share, 0.01)
    for model in (ahead, gone):
        model.sharer.begin_waiting(0.0)
    ahead.sharer.used_seconds = 1.0
    assert not ahead.sharer.may_send(0.1)
    share.leave(gone.sharer)
    assert (ahead.woken, ahead.sharer.may_send(0.1)) == (1, True)
