"""The time of an answer by part: each module's own time, without that of the modules that it calls."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from torch import nn

from inference.runner.engines.linear import Linear
from inference.runner.engines.ofa.attention import SelfAttention
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.layers import FeedForward, LayerNorm
from inference.runner.engines.ofa.positions import EncoderBias

RESNET, PROJECTIONS, ATTENTION, BIASES, DECODER, REST = (
    *("ResNet", "encoder: projections", "encoder: attention", "encoder: biases"),
    *("decoder", "rest: norms, activations, embeddings"),
)
FUSED = ("forward_activated", "forward_add")  # of Linear
PARTS = (RESNET, PROJECTIONS, ATTENTION, BIASES, DECODER, REST)


class PartTimes:
    """Seconds by part, of all calls within `watching`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def watching(self, engine: OfaEngine) -> Iterator[None]:
        """Time the parts of an engine on a CPU, where a call has ended when it returns."""
        hooks = [hook for part, module in _modules(engine.model) for hook in self._hooks(part, module)]
        biases = cast("EncoderBias", engine._biases.encoder)  # noqa: SLF001  the parts are looked at from outside
        biases._fill = partial(self._timed, BIASES, biases._fill)  # type: ignore[assignment, method-assign]  # noqa: SLF001
        fused = [module for module in engine.model.get_submodule("encoder").modules() if isinstance(module, Linear)]
        for module in fused:  # not called as modules
            for method in FUSED:
                setattr(module, method, partial(self._timed, PROJECTIONS, getattr(module, method)))
        self._enter(REST)
        try:
            yield
        finally:
            self._leave()
            for module in fused:
                for method in FUSED:
                    delattr(module, method)
            del biases._fill  # noqa: SLF001  the method of its class is there again
            for hook in hooks:
                hook.remove()

    def _hooks(self, part: str, module: nn.Module) -> list[Any]:
        def before(*_: object) -> None:
            self._enter(part)

        def after(*_: object) -> None:
            self._leave()

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _timed(self, part: str, call: Callable[..., object], *arguments: object) -> object:
        self._enter(part)
        try:
            return call(*arguments)
        finally:
            self._leave()

    def _enter(self, part: str) -> None:
        self._charge()
        self._open.append(self._open[-1] if self._open and self._open[-1] in (RESNET, DECODER) else part)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module whose time is measured, with the name of its part."""
    yield RESNET, model.get_submodule("image_encoder")
    yield DECODER, model.get_submodule("decoder")
    for module in model.get_submodule("encoder").modules():
        if isinstance(module, SelfAttention):
            yield ATTENTION, module
        elif isinstance(module, Linear):
            yield PROJECTIONS, module
        elif isinstance(module, (FeedForward, LayerNorm)):
            yield REST, module
