"""Named places at which a test kills or freezes the updater: what no other fault can hit so exactly.

Armed by a variable for tests only (`HOTSLOT_CRASH_AT=OBSERVING`): the process kills itself with SIGKILL
 - `<STAGE>` right after the record that enters the stage was written,
 - `before:<Action>` after the decision, before its effect,
 - `after:<Action>` after its effect, before the record is written.
With `stop:` in front it freezes there instead (SIGSTOP), once, until somebody wakes it.
"""

import os
import signal

_FREEZE = "stop:"


class CrashPoints:
    """Where this process is to die; nowhere, unless a test says so."""

    def __init__(self, armed: str = "") -> None:
        """Arm one point; empty: none."""
        self._armed = armed

    def pass_by(self, name: str) -> None:
        """Die or freeze here, if this is the place."""
        if not self._armed or name != self._armed.removeprefix(_FREEZE):
            return
        is_freeze = self._armed.startswith(_FREEZE)
        self._armed = ""
        os.kill(os.getpid(), signal.SIGSTOP if is_freeze else signal.SIGKILL)
