"""The stock model class, from the environment that `make parity` builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.addresses.layout import LABELS
from examples.shapes import stock_imports  # noqa: F401 - makes modelscope importable

# isort: split
from modelscope.models.multi_modal.mgeo import MGeoForTokenClassification
from transformers import BertConfig


def make_model(settings: Mapping[str, int], tokens: int) -> tuple[Any, dict[str, Any]]:
    """A stock MGeo token classifier with random weights, and its configuration.

    Args:
        settings: of BERT's configuration.
        tokens: size of the vocabulary.
    """
    config = BertConfig(
        vocab_size=tokens,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        **settings,
    )
    # What the published configurations hold beside BERT's own keys.
    config.fusion_layer, config.encoder_width = config.num_hidden_layers, config.hidden_size
    config.add_cross_attention, config.gis_embedding, config.gradient_checkpointing = False, 0, False
    model = MGeoForTokenClassification(config, finetune_mode="single-modal")
    return model, {**config.to_dict(), "model_type": "bert"}
