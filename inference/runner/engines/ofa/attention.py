"""Attention of OFA: of the encoder's and the decoder's tokens to themselves, and of the decoder's to the encoder's."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.kernels import Kernels, get_kernels
from inference.runner.engines.linear import Linear, multiply, multiply_add, supports_products

_MASKED = -30_000.0  # added to a score: its weight is 0, and no intermediate result is infinite
_MASK_COORDINATES = 8  # fused attention takes sizes of heads that are multiples of 8


def make_key_mask(lengths: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Make further coordinates of keys that mask the tokens after each row's length.

    Rows then share one bias although their lengths differ: a bias of each row is 29 MB a layer for the large model.

    Args:
        lengths: (rows,) tokens of each row that are not masked.
        tokens: number of keys.
        dtype: of the attention.

    Returns:
        (rows, 1, tokens, coordinates): the queries' further coordinates are ones, so that the sum is added to a score.
    """
    is_masked = torch.arange(tokens, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(len(lengths), 1, tokens, _MASK_COORDINATES, dtype=dtype, device=lengths.device)
    mask[:, 0, :, 0].masked_fill_(is_masked, _MASKED)
    return mask


class SelfAttention(nn.Module):
    """Multi-head self-attention with an additive bias."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the layer; weights include the query's scale and the heads' scales."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, biases: Iterable[Tensor], key_mask: Tensor | None = None) -> Tensor:
        """Apply self-attention.

        Args:
            x: (rows, tokens, width).
            biases: tensors of (1 or rows, some heads, tokens, tokens) that cover all heads in order; added to the
                scores, -inf masks a token.
            key_mask: of `make_key_mask`.

        Returns:
            (rows, tokens, width).
        """
        rows, tokens, width = x.shape
        split = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        if key_mask is None and (kernels := _find_kernels(split)) is not None:
            mixed: Tensor = self.out(_attend_by_kernels(kernels, split, biases).view(rows, tokens, width))
            return mixed
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if key_mask is not None:
            ones = query.new_ones(1, 1, 1, _MASK_COORDINATES).expand(rows, self.heads, tokens, -1)
            query = torch.cat([query, ones], -1)
            key = torch.cat([key, key_mask.expand(-1, self.heads, -1, -1)], -1)
        attend = _attend_by_head if _prefers_products(x) else _attend
        result: Tensor = self.out(attend(query, key, value, biases).view(rows, tokens, width))
        return result


def _attend(query: Tensor, key: Tensor, value: Tensor, biases: Iterable[Tensor]) -> Tensor:
    """Mix values by torch's fused attention.

    Args:
        query: (rows, heads, tokens, size).
        key: likewise.
        value: likewise.
        biases: as in `SelfAttention`.

    Returns:
        (rows, tokens, heads, size).
    """
    parts, start = [], 0
    for bias in biases:
        some = slice(start, start + bias.shape[1])
        mixed = F.scaled_dot_product_attention(query[:, some], key[:, some], value[:, some], attn_mask=bias, scale=1.0)
        parts.append(mixed.transpose(1, 2))
        start = some.stop
    return torch.cat(parts, dim=2)


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor, biases: Iterable[Tensor]) -> Tensor:
    """As `_attend`, by oneDNN's products, head by head: the scores of one head fit into the cache."""
    rows, heads, tokens, size = query.shape
    mixed = value.new_empty(rows, tokens, heads, size)
    start = 0
    for bias in biases:
        for row in range(rows):
            for head, of_head in enumerate(bias[row % len(bias)], start):
                weights = _weigh(query[row, head], key[row, head], of_head).to(value.dtype)
                mixed[row, :, head] = multiply(weights, value[row, head].t())
        start += bias.shape[1]
    return mixed


def _attend_by_kernels(kernels: Kernels, split: Tensor, biases: Iterable[Tensor]) -> Tensor:
    """As `_attend`, from projections of (rows, tokens, 3, heads, size)."""
    rows, tokens, _, heads, size = split.shape
    mixed = split.new_empty(rows, tokens, heads, size)
    start = 0
    for bias in biases:
        for row in range(rows):
            kernels.attend(split[row], bias[row % len(bias)].contiguous(), start, mixed[row])
        start += bias.shape[1]
    return mixed


def _weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """(tokens, source) float32, the weights of attention.

    Scores are float32 in either precision, since rounding a score of 8 to bfloat16 changes its weight by 2 %.

    Args:
        query: (tokens, size).
        key: (source, size).
        bias: (tokens, source).
    """
    scores = multiply_add(query.to(torch.float32), key.to(torch.float32), bias.to(torch.float32))
    return torch.softmax(scores, dim=-1, out=scores)


_PRODUCT_TOKENS = 384  # fewer are attended to faster by torch's fused attention


def _prefers_products(memory: Tensor) -> bool:
    """Whether attention to (rows, tokens, width) is faster by oneDNN's products than by torch's fused attention."""
    return memory.shape[1] >= _PRODUCT_TOKENS and _has_fast_products(memory.device.type, memory.dtype)


def can_use_kernels(tokens: int, dtype: torch.dtype) -> bool:
    """Whether kernels are faster than what torch has for so many tokens on a CPU."""
    return tokens >= _PRODUCT_TOKENS and _has_fast_products("cpu", dtype)


def _find_kernels(split: Tensor) -> Kernels | None:
    """The kernels, if they are faster for (rows, tokens, 3, heads, size) than what torch has."""
    if not (split.device.type == "cpu" and can_use_kernels(split.shape[1], split.dtype)):
        return None
    kernels = get_kernels()
    return kernels if kernels is not None and kernels.supports_attention(split.dtype, split.shape[-1]) else None


@functools.cache
def _has_fast_products(kind: str, dtype: torch.dtype) -> bool:
    if not (supports_products(kind, dtype) and supports_products(kind, torch.float32)):
        return False
    # With AMX float32 has a seventh of bfloat16's speed, and torch's attention multiplies in bfloat16.
    # A private function of torch; `bool()` is False where it no longer exists.
    return dtype == torch.float32 or not getattr(torch.cpu, "_is_amx_tile_supported", bool)()


class CrossAttention(nn.Module):
    """Multi-head attention from the decoder's tokens to the encoder's output.

    The decoder has few queries and the encoder many tokens, so on a CPU keys and values are never computed: the key
    projection is applied to the queries ((q Wk) · m equals q · (Wk m)) and the value projection to the attended memory.
    The key's bias is left out because it adds the same number to all scores of a query, which the softmax cancels. On a
    GPU the usual order is faster, because fused attention supports only small heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Create the layer; weights include the query's scale and the heads' scales."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """Apply cross-attention.

        Args:
            x: (rows, tokens, width).
            memory: (rows, source, width), output of the encoder.
            bias: (1 or rows, heads, tokens, source), added to the scores; -inf masks a token.

        Returns:
            (rows, tokens, width).
        """
        return self.attend(x, memory, bias) if x.is_cuda else self.attend_folded(x, memory, bias)

    def attend(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `forward`: projects the memory to keys and values."""
        rows, tokens, width = x.shape
        query = self.query(x).view(rows, tokens, self.heads, -1).transpose(1, 2)
        split = self.key_value(memory).view(rows, memory.shape[1], 2, self.heads, -1)
        key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        result: Tensor = self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        return result

    def attend_folded(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `forward`: applies the projections of the memory to the queries and to the attended memory."""
        rows, tokens, width = x.shape
        size, source = width // self.heads, memory.shape[1]
        key, value = self.key_value.weight.view(2, self.heads, size, width).unbind(0)
        query = self.query(x).view(rows, tokens, self.heads, size).transpose(1, 2)
        queries = (query @ key).view(rows, 1, self.heads * tokens, width)
        mask = bias.reshape(-1, 1, self.heads * tokens, source)
        attended = _attend_to_shared(queries, memory, mask)
        mixed = attended.view(rows, self.heads, tokens, width) @ value.transpose(1, 2)
        mixed = mixed.transpose(1, 2).reshape(rows, tokens, width) + self.key_value.bias[width:]
        result: Tensor = self.out(mixed)
        return result


def _attend_to_shared(queries: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
    """Attend to a memory that is both keys and values.

    Args:
        queries: (rows, 1, queries, width).
        memory: (rows, source, width).
        bias: (1 or rows, 1, queries, source).

    Returns:
        (rows, 1, queries, width).
    """
    if not _prefers_products(memory):
        shared = memory[:, None]
        return F.scaled_dot_product_attention(queries, shared, shared, attn_mask=bias, scale=1.0)
    attended = torch.empty_like(queries)
    for row in range(len(memory)):
        weights = _weigh(queries[row, 0], memory[row], bias[row % len(bias), 0]).to(memory.dtype)
        attended[row, 0] = multiply(weights, memory[row].t())
    return attended
