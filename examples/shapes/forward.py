"""The stock model's sums, arranged for training: position biases are made once for all items of a batch.

OFA's positions never mix with content, so their biases are the same for every item; the stock code copies them for
each, and its decoder computes every position where only the last is asked for. Same parameters, same answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from examples.shapes.logic import Answer
from examples.shapes.model import OFAModel
from examples.shapes.vocabulary import ANSWER_IDS, EOS, PAD

Stock = Any  # a module of the stock code, whose parts go by their names

_HEADS = 4
_ANSWER_ROWS = torch.tensor([ANSWER_IDS[answer] for answer in Answer])


def answer_logits(model: OFAModel, features: Tensor, prompts: Tensor) -> Tensor:
    """Score the three answers as the stock pipeline does when it traverses them.

    Args:
        model: gives the parameters; its ResNet is not used.
        features: (items, 1024, 4, 4), what the ResNet made of the pictures.
        prompts: (items, longest) int64, with BOS and EOS, padded.

    Returns:
        (items, 3) logits at the last position of the prompt, in the order of `Answer`.
    """
    encoded, places, hidden = _encode(model.encoder, features, prompts)
    so_far = prompts.masked_fill(prompts == EOS, PAD)[:, :-1]
    decoded = _decode(model.decoder, so_far, encoded, (places, hidden))
    rows: Tensor = model.decoder.output_projection.weight[_ANSWER_ROWS]
    return decoded @ rows.T


def _encode(encoder: Stock, features: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded items (items, length, width), places (length, width) and the mask (items, 1, 1, length)."""
    types = encoder.type_embedding.weight
    words = encoder.layernorm_embedding(encoder.embed_tokens(prompts) + types[0])
    patches = encoder.image_proj(features.flatten(2).transpose(1, 2)) + types[1]
    x = torch.cat([encoder.patch_layernorm_embedding(patches), words], dim=1)
    seen, length = patches.shape[1], prompts.shape[1]
    is_pad = torch.cat([torch.zeros(len(prompts), seen, dtype=torch.bool), prompts == PAD], dim=1)
    x = x * ~is_pad[..., None]
    hidden = torch.zeros(is_pad.shape).masked_fill(is_pad, torch.finfo(torch.float32).min)[:, None, None]

    places = torch.cat(
        [
            encoder.image_pos_ln(encoder.embed_image_positions.weight[1 : seen + 1]),
            encoder.pos_ln(encoder.embed_positions.weight[:length]),
        ]
    )
    absolute = _bias(encoder.pos_q_linear(places) * encoder.pos_scaling, encoder.pos_k_linear(places))
    buckets = encoder.token_rp_bucket[:length, :length]
    image_buckets = encoder.image_rp_bucket[1 : seen + 1, 1 : seen + 1]
    for number, layer in enumerate(encoder.layers):
        of_words = encoder.token_rel_pos_table_list[number].weight[buckets].permute(2, 0, 1)
        of_patches = encoder.image_rel_pos_table_list[number].weight[image_buckets].permute(2, 0, 1)
        relative = functional.pad(of_words, (seen, 0, seen, 0)) + functional.pad(of_patches, (0, length, 0, length))
        normal = layer.self_attn_layer_norm(x)
        x = x + layer.self_attn_mid_layer_norm(_attend(layer.self_attn, normal, normal, absolute + relative + hidden))
        x = x + _feed(layer, x)
    return encoder.layer_norm(x), places, hidden


def _decode(decoder: Stock, so_far: Tensor, encoded: Tensor, source: tuple[Tensor, Tensor]) -> Tensor:
    """(items, width), the decoder's state at each prompt's last position."""
    places, hidden = source
    length, last = so_far.shape[1], (so_far != PAD).sum(1) - 1
    items = torch.arange(len(last))
    here = decoder.pos_ln(decoder.embed_positions.weight[:length])
    own = _bias(decoder.self_pos_q_linear(here) * decoder.pos_scaling, decoder.self_pos_k_linear(here))
    own = own + torch.full((length, length), float("-inf")).triu(1)
    cross = _bias(decoder.cross_pos_q_linear(here) * decoder.pos_scaling, decoder.cross_pos_k_linear(places))
    x = decoder.layernorm_embedding(decoder.embed_tokens(so_far))
    buckets = decoder.token_rp_bucket[:length, :length]
    for number, layer in enumerate(decoder.layers):
        bias = own + decoder.token_rel_pos_table_list[number].weight[buckets].permute(2, 0, 1)
        normal = asking = layer.self_attn_layer_norm(x)
        if number == len(decoder.layers) - 1:  # no one looks at the other positions any more
            x, asking = x[items, last][:, None], normal[items, last][:, None]
            bias, cross = (each[:, last].transpose(0, 1)[:, :, None] for each in (bias, cross))
        x = x + layer.self_attn_mid_layer_norm(_attend(layer.self_attn, asking, normal, bias))
        normal = layer.cross_attn_layer_norm(x)
        x = x + layer.cross_attn_mid_layer_norm(_attend(layer.cross_attn, normal, encoded, cross + hidden))
        x = x + _feed(layer, x)
    answering: Tensor = decoder.layer_norm(x[:, 0])
    return answering


def _bias(queries: Tensor, keys: Tensor) -> Tensor:
    """(length, width) and (other length, width) → (heads, length, other length)."""
    return torch.einsum("qhd,khd->hqk", queries.unflatten(1, (_HEADS, -1)), keys.unflatten(1, (_HEADS, -1)))


def _attend(attention: Stock, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
    """One attention of all heads, each scaled by `c_attn`."""
    queries = _heads(attention.q_proj(x) * attention.scaling)
    scores = queries @ _heads(attention.k_proj(source)).transpose(2, 3) + bias
    mixed = torch.softmax(scores, dim=-1) @ _heads(attention.v_proj(source))
    joined: Tensor = attention.out_proj((mixed * attention.c_attn[:, None, None]).transpose(1, 2).flatten(2))
    return joined


def _heads(x: Tensor) -> Tensor:
    """(items, length, width) → (items, heads, length, width of a head)."""
    apart: Tensor = x.unflatten(2, (_HEADS, -1))
    return apart.transpose(1, 2)


def _feed(layer: Stock, x: Tensor) -> Tensor:
    inner = functional.gelu(layer.fc1(layer.final_layer_norm(x)))
    outer: Tensor = layer.fc2(layer.ffn_layer_norm(inner))
    return outer
