"""The demo model: OFA's own architecture, as small as it goes.

Needs modelscope, so it runs in the parity environment; import `examples.shapes.stock_imports` before modelscope.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from examples.shapes import stock_imports  # noqa: F401 - makes modelscope importable
from examples.shapes.vocabulary import TOKENS

# isort: split
from modelscope.models.multi_modal.ofa import OFAModel
from modelscope.models.multi_modal.ofa.configuration_ofa import OFAConfig

__all__ = ["SETTINGS", "OFAConfig", "OFAModel", "build", "load_eyes", "normalised"]

WIDTH = 64
SETTINGS: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": WIDTH,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "dropout": 0.0,
    "max_position_embeddings": 256,
    "resnet_type": "resnet18",
    "image_bucket_size": 4,
    "token_bucket_size": 32,
    "code_image_size": 64,
    "architectures": ["OFAModel"],
}


def build(seed: int) -> OFAModel:
    """Make the model with fresh weights.

    OFA's own initialisation, N(0, 0.02), does not learn to look here; Xavier's does.
    """
    torch.manual_seed(seed)
    model = OFAModel(OFAConfig(**SETTINGS))
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2
        if is_matrix and ("proj" in name or "linear" in name or ".fc" in name):
            nn.init.xavier_uniform_(parameter)
        elif "embed_tokens" in name or "embed_positions" in name or "embed_image_positions" in name:
            nn.init.normal_(parameter, std=WIDTH**-0.5)
    return model


def load_eyes(model: OFAModel, weights: dict[str, Tensor]) -> None:
    """Put a trained ResNet into the model."""
    model.encoder.embed_images.load_state_dict(weights)


def normalised(pictures: Tensor) -> Tensor:
    """(items, 3, 64, 64) uint8 → float32, mean and deviation 0.5."""
    return pictures.float() / 127.5 - 1.0
