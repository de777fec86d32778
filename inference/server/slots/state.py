"""Where a slot's process stands: one table, one function. Pure."""

from enum import StrEnum


class SlotState(StrEnum):
    """Where a slot's process stands."""

    EMPTY = "EMPTY"  # no process
    STARTING = "STARTING"  # a process imports
    READY = "READY"  # a process stands ready, without a model
    LOADING = "LOADING"  # a model is loaded and warmed up
    LOADED = "LOADED"  # a model answers
    RETIRING = "RETIRING"  # the process is ending, as asked
    FAILED = "FAILED"  # the process died


class SlotEvent(StrEnum):
    """What can happen to a slot's process."""

    SPAWNED = "SPAWNED"
    SAID_HELLO = "SAID_HELLO"
    LOAD_BEGUN = "LOAD_BEGUN"
    LOAD_ENDED = "LOAD_ENDED"
    RETIRE_ASKED = "RETIRE_ASKED"
    PROCESS_ENDED = "PROCESS_ENDED"


TABLE: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (SlotState.EMPTY, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.EMPTY, SlotEvent.RETIRE_ASKED): SlotState.EMPTY,
    (SlotState.STARTING, SlotEvent.SAID_HELLO): SlotState.READY,
    (SlotState.STARTING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.STARTING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.READY, SlotEvent.LOAD_BEGUN): SlotState.LOADING,
    (SlotState.READY, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.READY, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADING, SlotEvent.LOAD_ENDED): SlotState.LOADED,
    (SlotState.LOADING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.LOADING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADED, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.LOADED, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.RETIRING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.RETIRING, SlotEvent.PROCESS_ENDED): SlotState.EMPTY,
    (SlotState.FAILED, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.FAILED, SlotEvent.RETIRE_ASKED): SlotState.EMPTY,
}


def step(state: SlotState, event: SlotEvent) -> SlotState:
    """The state after an event.

    Raises:
        RuntimeError: the event cannot happen in this state; nothing has changed.
    """
    after = TABLE.get((state, event))
    if after is None:
        raise RuntimeError(f"a slot that is {state} cannot meet {event}")
    return after
