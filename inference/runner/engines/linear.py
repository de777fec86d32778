"""Linear layers for CPUs and GPUs; on a CPU by oneDNN's fused products, for many rows in float32 by compiled kernels.

torch has these for its compiler and does not export them publicly. MKL, which torch otherwise takes for float32, uses
half of the vector width on processors that are not Intel's, and so takes 2.3 times as long on an AMD EPYC with AVX-512.
"""

import functools
import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.kernels import Kernels, get_kernels

_ONEDNN = torch.ops.mkldnn
_MACHINES = {"x86_64", "amd64"}
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_KERNEL_ROWS = 512  # with fewer rows oneDNN is as fast or faster

# In place; the GELU is that by the error function. The names are oneDNN's.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": torch.ops.aten.gelu_, "relu": torch.relu_}


class Linear(nn.Module):
    """y = x Wᵀ + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create the layer with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        return self._compute(x)

    def forward_activated(self, x: Tensor, activation: str) -> Tensor:
        """As `forward`, followed by one of `ACTIVATIONS`."""
        return self._compute(x, activation)

    def forward_add(self, x: Tensor, other: Tensor) -> Tensor:
        """As `forward`; adds `other`, of the result's shape."""
        return self._compute(x, other=other)

    def _compute(self, x: Tensor, activation: str = "none", other: Tensor | None = None) -> Tensor:
        kernels = _find_kernels(x, self.weight)
        if kernels is not None:
            return kernels.multiply(x, self.weight, self.bias, activation, other)
        if supports_products(x.device.type, x.dtype):
            if other is not None:
                return multiply_add(x, self.weight, other, self.bias)
            return multiply(x, self.weight, self.bias, activation)
        result = F.linear(x, self.weight, self.bias)
        # In place: an activated result is the largest tensor of a call.
        if other is not None:
            return result.add_(other)
        return result if activation == "none" else ACTIVATIONS[activation](result)


def _find_kernels(x: Tensor, weight: Tensor) -> Kernels | None:
    """The compiled kernels, where they are faster than oneDNN: for many rows in float32."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < _KERNEL_ROWS * x.shape[-1]:
        return None
    kernels = get_kernels()
    return kernels if kernels is not None and kernels.supports_products(weight) else None


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Compute x Wᵀ + b by oneDNN; see `supports_products`.

    Args:
        x: (…, inputs).
        weight: (outputs, inputs).
        bias: (outputs,).
        activation: "none" or one of `ACTIVATIONS`.
    """
    weight = (
        weight.contiguous()
    )  # for other layouts oneDNN has a reference implementation, which takes 1000 times as long
    result: Tensor = _ONEDNN._linear_pointwise(x, weight, bias, activation, [], "none")  # noqa: SLF001  no public name
    return result


def multiply_add(x: Tensor, weight: Tensor, other: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `multiply`; adds `other`, of the result's shape."""
    weight = weight.contiguous()  # as in `multiply`
    result: Tensor = _ONEDNN._linear_pointwise.binary(x, other, weight, bias, "add")  # noqa: SLF001  no public name
    return result


def supports_products(kind: str, dtype: torch.dtype) -> bool:
    """Whether `multiply` works, and is fast, on a kind of device ("cpu", "cuda") in a dtype."""
    return find_obstacle(kind, dtype) is None


def report_obstacle(kind: str, dtype: torch.dtype, log: Callable[..., None]) -> None:
    """Log an event if `multiply` should work in a dtype and does not."""
    if reason := find_obstacle(kind, dtype):
        log("products_unused", level="warning", dtype=str(dtype), reason=reason)


@functools.cache
def find_obstacle(kind: str, dtype: torch.dtype) -> str | None:
    """Why `multiply` cannot be used; None if it can, empty if it is not for such a device, processor or dtype.

    The first call for a CPU tries it: torch or oneDNN may lack it, or the processor the instructions for the dtype.
    """
    if kind != "cpu" or platform.machine().lower() not in _MACHINES or dtype not in _TOLERANCE:
        return ""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # without AVX2, MKL is twice as fast
        return ""
    try:
        error = _try_products(dtype)
    except (RuntimeError, AttributeError, TypeError) as caught:
        return type(caught).__name__
    return None if error <= _TOLERANCE[dtype] else f"they are wrong by {error:g}"


def _try_products(dtype: torch.dtype) -> float:
    """Largest error of the fused products of small matrices, against the same without oneDNN."""
    with torch.inference_mode():
        # Without a generator: a global one would be changed.
        x = (torch.arange(48 * 40).reshape(48, 40) % 7 - 3).to(dtype) / 4
        weight = (torch.arange(64 * 40).reshape(64, 40) % 5 - 2).to(dtype) / 4
        bias, other = (torch.arange(64) % 3).to(dtype), (torch.arange(48 * 64).reshape(48, 64) % 9).to(dtype)
        expected = x.float() @ weight.float().T
        results = (
            (multiply(x, weight), expected),
            (multiply(x, weight, bias, "gelu"), F.gelu(expected + bias.float())),
            (multiply(x, weight, bias, "relu"), F.relu(expected + bias.float())),
            (multiply_add(x, weight, other, bias), expected + bias.float() + other.float()),
        )
        return max(float((found.float() - wanted).abs().max()) for found, wanted in results)
