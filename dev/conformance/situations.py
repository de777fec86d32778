"""The servers of a run, and the situation in which each row finds its server."""

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from common.tokens import make_entry, make_token, write_tokens
from dev.conformance.runner import Json
from dev.harness.answers import question
from dev.harness.certificates import Authority
from dev.harness.pointer import commit_bundle
from dev.harness.process import ROOT, free_port
from dev.harness.scripted_engine import make_scripted_bundle
from dev.harness.secured import Secured
from dev.harness.stack import Stack
from dev.harness.waiting import eventually

PICTURES = ROOT / "examples" / "shapes" / "pictures"
SALT = "conformance"  # of every revision: all give the same labels
QUOTA_ROWS = 8.0  # a second
BUSY_SECONDS = 4.0


class Servers:
    """Starts servers as rows need them; all are ended at the end.

    Args:
        folder: everything lies in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stacks: dict[str, Stack] = {}
        self._ended = contextlib.ExitStack()
        self._threads: list[threading.Thread] = []
        self._secured: Secured | None = None
        self._files: dict[str, str] = {}

    def __enter__(self) -> Self:
        """The servers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; after a failure by force."""
        try:
            self._join()
        finally:
            self._ended.__exit__(kind, error, trace)

    # Endpoints.

    def endpoint(self, situation: str) -> Json:
        """What a runner is told."""
        if situation == "down":
            return {"address": f"127.0.0.1:{free_port()}"}
        if situation.startswith(("tls", "token", "quota")):
            return self._secured_endpoint(situation)
        return {"address": self.stack(_SERVER_OF.get(situation, situation)).address}

    def _secured_endpoint(self, situation: str) -> Json:
        address = self.stack("secured").address
        ours = {key: self._files[key] for key in ("ca_file", "certificate_file", "key_file")}
        token = {"token_file": self._files["token"]}
        return {
            "tls": {"address": address, **ours, **token},
            "tls-wrong-ca": {"address": address, **ours, **token, "ca_file": self._files["other_ca"]},
            "tls-no-certificate": {"address": address, "ca_file": self._files["ca_file"], **token},
            "tls-plain": {"address": address, **token},
            "token-missing": {"address": address, **ours},
            "token-unknown": {"address": address, **ours, "token_file": self._files["unknown_token"]},
            "quota": {"address": address, **ours, "token_file": self._files["limited_token"]},
            "quota-used": {"address": address, **ours, "token_file": self._files["limited_token"]},
        }[situation]

    # Situations.

    def prepare(self, situation: str) -> None:
        """Bring about what a row is to find."""
        self._join()
        if situation == "busy":
            self._occupy()
        if situation == "quota-used":
            self._use_quota()

    def on_reached(self, situation: str) -> Callable[[], None]:
        """What happens while a row runs, when its runner has reached `report_at`."""
        actions: dict[str, Callable[[Stack], object]] = {
            "runner-killed": lambda stack: stack.kill(stack.active_pid()),
            "drained": lambda stack: restart(stack, signal.SIGTERM),
            "server-killed": lambda stack: restart(stack, signal.SIGKILL),
            "swapped": swap,
        }
        act = actions.get(situation)
        if act is None:
            return lambda: None
        stack = self.stack(_SERVER_OF[situation])
        return lambda: self._start(lambda: act(stack))

    def _start(self, action: Callable[[], object]) -> None:
        thread = threading.Thread(target=action)
        thread.start()
        self._threads.append(thread)

    def _join(self) -> None:
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def _occupy(self) -> None:
        """Fill the queue of a server that holds one request."""
        stack = self.stack("busy")
        asked = question(f"!slow {BUSY_SECONDS}")
        begun = threading.Event()

        def ask() -> None:
            call = stack.entailment.Predict.future(asked.request("shapes"), timeout=20)
            begun.set()
            with contextlib.suppress(grpc.RpcError):
                call.result()

        self._start(ask)
        begun.wait()
        eventually(lambda: is_full(stack), what="the queue is full")

    def _use_quota(self) -> None:
        """Spend more than the quota: what follows is refused for two seconds."""
        stack, secured = self.stack("secured"), self._secured
        assert secured is not None
        token = Path(self._files["limited_token"]).read_text()
        credentials = grpc.ssl_channel_credentials(
            *(Path(self._files[key]).read_bytes() for key in ("ca_file", "key_file", "certificate_file"))
        )
        with grpc.secure_channel(stack.address, credentials) as channel:
            call: Any = channel.unary_unary("/hotslot.entailment.v1.EntailmentService/Predict")
            request = question(*(f"statement {number}" for number in range(32))).request("shapes")
            metadata = (("authorization", f"Bearer {token}"),)
            with contextlib.suppress(grpc.RpcError):
                call(request.SerializeToString(), metadata=metadata, timeout=20)

    # Servers.

    def stack(self, name: str) -> Stack:
        """A server by its name, started if it is not."""
        if name not in self._stacks:
            self._stacks[name] = self._ended.enter_context(self._make(name))
        return self._stacks[name]

    def _make(self, name: str) -> Stack:
        folder = self._folder / name
        folder.mkdir()
        server: Json = {"port": free_port()}
        if name == "busy":
            server["max_waiting_requests"] = 1
        script: Json = {"salt": SALT, "call_seconds": 0.01} if name in ("restarting", "swapping") else {"salt": SALT}
        sections: Json = {}
        if name == "secured":
            self._secured = Secured(folder / "access")
            sections = dict(self._secured.sections)
            server.update(sections.pop("server"))
            self._write_access(folder, self._secured)
        stack = Stack(folder, server=server, script=script, committed=None if name == "empty" else "r1")
        if self._secured is not None and name == "secured":
            stack.open_channel = self._secured.open_channel
        stack.add_settings(sections)
        add_tables(stack, {"quota": name == "secured"})
        if name != "empty":
            commit_bundle(folder, make_scripted_bundle(folder, "r1", task="token-classification"), "addresses")
        return _Started(stack, name)

    def _write_access(self, folder: Path, secured: Secured) -> None:
        tokens = {"token": make_token(), "limited_token": make_token(), "unknown_token": make_token()}
        for name, token in tokens.items():
            (folder / name).write_text(token)
            self._files[name] = str(folder / name)
        write_tokens(secured.tokens, added=make_entry("caller", tokens["token"], ""))
        write_tokens(secured.tokens, added=make_entry("limited", tokens["limited_token"], ""))
        self._files["ca_file"] = str(secured.authority.certificate)
        self._files["other_ca"] = str(Authority(folder / "other", "another CA").certificate)
        self._files["certificate_file"], self._files["key_file"] = str(secured.mine.certificate), str(secured.mine.key)


class _Started(Stack):
    """A stack that is started in the state which its name says."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.__dict__.update(stack.__dict__)
        self._name = name

    def __enter__(self) -> Self:
        """Start it; no process is left if that fails."""
        self.start(until_ready=self._name != "empty")
        try:
            if self._name == "trial":
                bundle = self.bundle("r2", salt=SALT)
                self.control.trial(bundle.bundle_digest)
            if self._name == "swapping":
                self.bundle("r2", salt=SALT, call_seconds=0.01)
        except BaseException:
            self.process.destroy()
            raise
        return self


_SERVER_OF = {
    "runner-killed": "restarting",
    "drained": "restarting",
    "server-killed": "restarting",
    "swapped": "swapping",
}


def is_full(stack: Stack) -> bool:
    """Whether a request is refused because another one is there."""
    try:
        stack.predict(question("a probe"), timeout=5)
    except grpc.RpcError:
        return True
    return False


def add_tables(stack: Stack, wanted: Json) -> None:
    """Add the second model, and the caller with a quota."""
    text = stack.config.read_text(encoding="utf-8")
    head, _, rest = text.partition("[server]")
    tables = '[[models]]\nname = "addresses"\ntask = "token-classification"\n'
    if wanted.get("quota"):
        tables += f'[[callers]]\nname = "limited"\nrows_per_second = {QUOTA_ROWS}\n'
    stack.config.write_text(f"{head}{tables}[server]{rest}", encoding="utf-8")


def restart(stack: Stack, number: signal.Signals) -> None:
    """End a server by a signal, and start it again on its port."""
    stack.hang_up()
    stack.process.send(number)
    stack.process.wait_exit()
    stack.process.destroy()
    stack.start()


def swap(stack: Stack) -> None:
    """Replace the model by the other revision."""
    other = "r1" if stack.control.active().revision == "r2" else "r2"
    stack.control.swap(stack.answers.digest_of(other))
