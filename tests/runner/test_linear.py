"""oneDNN's fused products are those of torch, and torch's are used where they are not available."""

import platform
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines import linear
from inference.runner.engines.linear import ACTIVATIONS, Linear, find_obstacle, report_obstacle, supports_products

ROWS, INPUTS, OUTPUTS = 37, 96, 50


@pytest.fixture(autouse=True)
def _tried_anew() -> Iterator[None]:
    find_obstacle.cache_clear()
    yield
    find_obstacle.cache_clear()


def _layer() -> tuple[Linear, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    layer = Linear(INPUTS, OUTPUTS).requires_grad_(requires_grad=False)
    layer.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=draw))
    layer.bias.copy_(torch.randn(OUTPUTS, generator=draw))
    return layer, torch.randn(2, ROWS, INPUTS, generator=draw), torch.randn(2, ROWS, OUTPUTS, generator=draw)


def _check(layer: Linear, x: torch.Tensor, other: torch.Tensor) -> None:
    plain = F.linear(x, layer.weight, layer.bias)
    close = torch.testing.assert_close
    close(layer(x), plain, atol=1e-5, rtol=1e-5)
    close(layer.forward_add(x, other), plain + other, atol=1e-5, rtol=1e-5)
    for name, activate in ACTIVATIONS.items():
        close(layer.forward_activated(x, name), activate(plain.clone()), atol=1e-5, rtol=1e-5)


def test_results_are_those_of_torch() -> None:
    """Also for a part of a larger tensor and for no rows; the arguments stay unchanged."""
    layer, x, other = _layer()
    x_before, other_before = x.clone(), other.clone()

    _check(layer, x, other)
    wide = torch.cat([x, x], dim=-1)
    torch.testing.assert_close(layer(wide[..., :INPUTS]), layer(x), atol=1e-5, rtol=1e-5)
    assert layer(x[:0]).shape == (0, ROWS, OUTPUTS)
    assert torch.equal(x, x_before)
    assert torch.equal(other, other_before)


def test_fused_products_are_used_on_x86() -> None:
    """MKL would take twice as long in float32 on processors that are not Intel's."""
    assert supports_products("cpu", torch.float32) is (platform.machine() in {"x86_64", "AMD64"})


def test_a_strided_weight_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a weight that is part of a larger tensor oneDNN has only a reference implementation, 1000 times as slow."""
    wide, x = torch.randn(OUTPUTS, 3 * INPUTS), torch.randn(ROWS, INPUTS)
    given: list[torch.Tensor] = []

    class Recording:
        """Keeps the weights that oneDNN would get."""

        def __init__(self) -> None:
            self._linear_pointwise = lambda _x, weight, *_: given.append(weight)
            self._linear_pointwise.binary = lambda _x, _other, weight, *_: given.append(weight)  # type: ignore[attr-defined]

    monkeypatch.setattr(linear, "_ONEDNN", Recording())
    for weight in (wide[:, INPUTS : 2 * INPUTS], torch.randn(INPUTS, OUTPUTS).t()):
        linear.multiply(x, weight)
        linear.multiply_add(x, weight, x)

    assert [weight.is_contiguous() for weight in given] == [True] * 4


@pytest.mark.parametrize("failure", ["lacking", "refusing", "wrong", "other machine"])
def test_torch_computes_where_onednn_does_not(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that is missing, that fails or that returns wrong numbers is found by a trial, and not used."""

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive descriptor")

    if failure == "lacking":
        monkeypatch.setattr(linear, "_ONEDNN", object())
    elif failure == "refusing":
        monkeypatch.setattr(linear, "multiply", refuse)
    elif failure == "wrong":
        monkeypatch.setattr(linear, "multiply_add", lambda x, weight, _other, _bias: F.linear(x, weight))
    else:
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert not supports_products("cpu", torch.float32)
    _check(*_layer())
    events: list[tuple[str, dict[str, object]]] = []
    report_obstacle("cpu", torch.float32, lambda name, **fields: events.append((name, fields)))
    reasons = {"lacking": "AttributeError", "refusing": "RuntimeError", "wrong": "they are wrong by 10"}
    assert [(name, fields["level"], fields["reason"]) for name, fields in events] == [
        ("products_unused", "warning", reason) for case, reason in reasons.items() if case == failure
    ]


def test_other_devices_and_dtypes_are_left_to_torch() -> None:
    """A GPU's products are torch's."""
    assert not supports_products("cuda", torch.bfloat16)
    assert not supports_products("cpu", torch.float64)
