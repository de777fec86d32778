"""The seconds of a device are shared by the models on it."""

import pytest

from inference.server.scheduling.device_share import DeviceShare, DeviceShares


class Model:
    """A model that has more to compute whenever it may."""

    def __init__(self, share: DeviceShare, call_seconds: float, name: str = "") -> None:
        self.call_seconds = call_seconds
        self.woken = 0
        self.user = share.join(name or str(id(self)), self.wake)

    def wake(self) -> None:
        """Count."""
        self.woken += 1


def play(models: list[Model], seconds: float) -> list[float]:
    """Compute whatever may be sent, one call at a time and the shortest calls first; returns the seconds of each."""
    now, used = 0.0, [0.0] * len(models)
    for model in models:
        model.user.begin_waiting(now)
    while now < seconds:
        free = [index for index, model in enumerate(models) if model.user.may_send(now)]
        assert free, "the device is never left idle"
        chosen = min(free, key=lambda index: models[index].call_seconds)
        now += models[chosen].call_seconds
        used[chosen] += models[chosen].call_seconds
        models[chosen].user.add_call(models[chosen].call_seconds, 1, now)
    return used


@pytest.mark.fault("L3")
@pytest.mark.parametrize("calls", [(0.01, 0.01), (0.005, 1.0), (0.01, 0.02, 0.4)])
def test_models_get_equal_seconds_whatever_their_calls_last(calls: tuple[float, ...]) -> None:
    """A model of short calls and one of long calls share the device."""
    share = DeviceShare()
    used = play([Model(share, seconds) for seconds in calls], 60.0)
    assert max(used) - min(used) <= 2 * max(calls) + 0.2


def test_a_model_without_work_holds_nobody_back() -> None:
    """The device's seconds go to the model that has work; the other gets no credit for its silence."""
    share = DeviceShare()
    busy, idle = Model(share, 0.1), Model(share, 0.1)
    busy.user.begin_waiting(0.0)
    busy.user.add_call(50.0, 1, 50.0)
    assert busy.user.may_send(50.0)
    idle.user.begin_waiting(50.0)
    assert busy.user.may_send(50.0)


def behind_and_ahead(share: DeviceShare) -> tuple[Model, Model]:
    """Two models that wait, one of which has used a second more."""
    behind, ahead = Model(share, 0.01), Model(share, 0.01)
    for model in (behind, ahead):
        model.user.begin_waiting(0.0)
    for _ in range(100):
        ahead.user.add_call(0.01, 1, 0.0)
    return behind, ahead


def test_a_model_that_is_ahead_waits_and_is_woken() -> None:
    """As soon as the other has caught up, or has no more work."""
    behind, ahead = behind_and_ahead(DeviceShare())
    assert not ahead.user.may_send(0.1)
    behind.user.end_waiting(0.1)
    assert (ahead.woken, ahead.user.may_send(0.1)) == (1, True)


def test_a_model_that_computes_nothing_holds_nobody_back_for_long() -> None:
    """Its runner hangs or loads: the other goes on after a second."""
    _, ahead = behind_and_ahead(DeviceShare())
    assert not ahead.user.may_send(0.5)
    assert ahead.user.may_send(1.5)


def test_a_slot_that_has_left_is_forgotten() -> None:
    """It was emptied."""
    gone, ahead = behind_and_ahead(DeviceShare())
    assert not ahead.user.may_send(0.1)
    gone.user.leave(0.1)
    assert (ahead.woken, ahead.user.may_send(0.1)) == (1, True)


def test_the_slots_of_a_model_do_not_wait_for_each_other() -> None:
    """A candidate's probes take nothing from the slot that serves."""
    share = DeviceShare()
    serving, candidate = Model(share, 0.01, "shapes"), Model(share, 0.01, "shapes")
    for model in (serving, candidate):
        model.user.begin_waiting(0.0)
    serving.user.add_call(50.0, 1, 0.1)
    assert serving.user.may_send(0.1)
    assert candidate.user.may_send(0.1)


def test_models_on_different_devices_share_nothing() -> None:
    """Each device has its own share."""
    shares = DeviceShares()
    assert shares.of("cuda:0") is shares.of("cuda:0")
    assert shares.of("cuda:0") is not shares.of("cuda:1")


def test_models_whose_calls_take_turns_on_the_device_are_charged_what_they_use() -> None:
    """A call's time includes waiting for the other model: calls of 160 ms and of 40 ms, in turn, both take 200 ms."""
    share = DeviceShare()
    slow, fast = share.join("slow", lambda: None, 0.02), share.join("fast", lambda: None, 0.005)
    now, used = 0.0, {slow: 0.0, fast: 0.0}
    for user in (slow, fast):
        user.begin_waiting(now)
    while now < 60.0:
        turn = [(user, seconds) for user, seconds in ((slow, 0.16), (fast, 0.04)) if user.may_send(now)]
        assert turn, "the device is never left idle"
        lasted = sum(seconds for _, seconds in turn)
        now += lasted
        for user, seconds in turn:
            used[user] += seconds
            user.add_call(lasted, 8, now)
    assert abs(used[slow] - used[fast]) < 1.0


def test_the_cost_of_a_call_is_learnt_while_nobody_else_uses_the_device() -> None:
    """A load under pressure measured too much, or nothing."""
    share = DeviceShare()
    alone, other = share.join("alone", lambda: None, 0.5), share.join("other", lambda: None)
    alone.begin_waiting(0.0)
    alone.add_call(0.005, 1, 0.005)
    other.begin_waiting(0.2)
    assert alone.may_send(0.2)
    for call in range(1, 9):
        alone.add_call(0.2, 8, 0.2 + 0.2 * call)
    assert not alone.may_send(0.4)
