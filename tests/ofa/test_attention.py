"""Attention by oneDNN's products, which long sequences take on a CPU, is that of torch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from dev.parity.ours import ask
from inference.runner.engines.linear import supports_products
from inference.runner.engines.ofa import attention
from inference.runner.engines.ofa.attention import CrossAttention, SelfAttention
from inference.runner.engines.ofa.engine import OfaEngine
from tests.ofa.test_agreement import TOLERANCE, assert_agree, questions_of, recorded

ROWS, HEADS, SIZE, TOKENS, ASKED = 2, 3, 16, 50, 5
WIDTH = HEADS * SIZE


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short sequences, too, are attended to by products."""
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    assert supports_products("cpu", torch.float32)
    monkeypatch.delattr(F, "scaled_dot_product_attention")


def _draw(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def _fill(module: torch.nn.Module) -> None:
    for number, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / WIDTH**0.5)


def _bias(rows: int, queries: int) -> Tensor:
    bias = _draw(rows, HEADS, queries, TOKENS)
    bias[:, :, :, -4:] = -torch.inf
    return bias


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(rows, heads, tokens, size), written out."""
    return torch.softmax(query @ key.transpose(2, 3) + bias, dim=-1) @ value


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.usefixtures("by_products")
def test_self_attention_is_that_of_its_definition(rows: int) -> None:
    """With one bias for all rows or one of each, in groups of heads, with masked tokens."""
    layer = SelfAttention(WIDTH, HEADS)
    _fill(layer)
    x, bias = _draw(ROWS, TOKENS, WIDTH), _bias(rows, TOKENS)

    found = layer(x, [bias[:, :2], bias[:, 2:]])

    query, key, value = (part.unflatten(2, (HEADS, SIZE)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=2))
    expected = layer.out(_plain(query, key, value, bias).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.usefixtures("by_products")
def test_cross_attention_is_that_of_its_definition(rows: int) -> None:
    """The projections of the memory are applied to the queries instead."""
    layer = CrossAttention(WIDTH, HEADS)
    _fill(layer)
    x, memory, bias = _draw(ROWS, ASKED, WIDTH), _draw(ROWS, TOKENS, WIDTH), _bias(rows, ASKED)

    found = layer(x, memory, bias)

    query = layer.query(x).unflatten(2, (HEADS, SIZE)).transpose(1, 2)
    key, value = (part.unflatten(2, (HEADS, SIZE)).transpose(1, 2) for part in layer.key_value(memory).chunk(2, dim=2))
    expected = layer.out(_plain(query, key, value, bias).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_scores_are_not_rounded_in_bfloat16() -> None:
    """The error is that of the inputs' and weights' rounding, as in torch's attention; rounded scores triple it."""
    query, key = _draw(1, 1, 64, 16, scale=2).bfloat16(), _draw(1, 1, 65, 16, scale=2).bfloat16()[:, :, :64]
    value, bias = _draw(1, 1, 64, 17).bfloat16()[..., :16], _draw(1, 1, 64, 64, scale=3).bfloat16()
    exact = _plain(query.double(), key.double(), value.double(), bias.double()).transpose(1, 2)

    error = (attention._attend_by_head(query, key, value, [bias]).double() - exact).pow(2).mean()  # noqa: SLF001
    usual = (attention._attend(query, key, value, [bias]).double() - exact).pow(2).mean()  # noqa: SLF001

    assert error.sqrt() <= 1.5 * usual.sqrt()


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.usefixtures("by_products")
def test_answers_agree_with_the_oracle_s(together: int, plain: OfaEngine) -> None:
    """Alone and in padded batches."""
    items = recorded("plain")[:30]

    assert_agree(items, ask(plain, questions_of(items), together), TOLERANCE)


def test_short_sequences_and_other_devices_take_torch_s_attention() -> None:
    """Head by head costs more calls than it saves there; a GPU has its own kernels."""
    short, long = torch.empty(1, 100, 8), torch.empty(1, 900, 8)

    assert not attention._prefers_products(short)  # noqa: SLF001
    assert attention._prefers_products(long) is supports_products("cpu", torch.float32)  # noqa: SLF001
    assert not attention._has_fast_products("cuda", torch.bfloat16)  # noqa: SLF001
