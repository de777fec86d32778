"""Counts the floating-point operations of an OFA's answer from its shapes. Pure.

A multiplication and an addition count as two. Norms, softmax and other linear work are left out, as is
usual. The model's operations per second as a share of the machine's peak, regardless of how they are computed, are the
model FLOPs utilization of "PaLM: Scaling Language Modeling with Pathways" (2022, appendix B).
"""

from dataclasses import dataclass

from inference.runner.engines.ofa.config import DecoderPrompt, EngineConfig
from inference.runner.engines.ofa.image_encoder import FEATURES

_STEM = 64
_WIDTHS = (64, 128, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of one picture and one statement, by part."""

    resnet: int
    encoder: int
    decoder: int  # as the model is made: keys and values of all that the encoder remembers
    decoder_executed: int  # as our engine does it: questions brought to the memory

    @property
    def model(self) -> int:
        """Operations of the model as published."""
        return self.resnet + self.encoder + self.decoder

    @property
    def executed(self) -> int:
        """Operations that the engine executes, without position biases."""
        return self.resnet + self.encoder + self.decoder_executed


def work_of(config: EngineConfig, text: int) -> Work:
    """Count the operations.

    Args:
        config: of the model.
        text: tokens of the prompt, begin and end included.
    """
    tokens = config.patches + text
    asked = 1 if config.decoder_prompt is DecoderPrompt.BEGIN else text - 1
    decoders = _decoder(config, tokens, asked), _decoder_executed(config, tokens, asked)
    return Work(_resnet(config), _encoder(config, tokens), *decoders)


def _encoder(config: EngineConfig, tokens: int) -> int:
    width = config.width
    dense = 2 * tokens * (4 * width**2 + 2 * width * config.encoder_ffn)
    return config.encoder_layers * (dense + 4 * tokens**2 * width)


def _decoder(config: EngineConfig, tokens: int, asked: int) -> int:
    width = config.width
    dense = 2 * asked * (6 * width**2 + 2 * width * config.decoder_ffn)
    cross = 4 * tokens * width**2 + 4 * asked * tokens * width
    return config.decoder_layers * (dense + cross + 4 * asked**2 * width)


def _decoder_executed(config: EngineConfig, tokens: int, asked: int) -> int:
    width = config.width
    # Query and output of the cross attention, its questions brought to the memory and what is found brought back.
    dense = 2 * asked * (8 * width**2 + 2 * width * config.decoder_ffn)
    cross = 4 * asked * config.decoder_heads * tokens * width
    return config.decoder_layers * (dense + cross + 4 * asked**2 * width)


def _resnet(config: EngineConfig) -> int:
    side = -(-config.image_size // 2)
    total = 2 * side**2 * _STEM * 3 * 49
    side, channels = -(-side // 2), _STEM
    for stage, (width, blocks) in enumerate(zip(_WIDTHS, config.resnet_blocks, strict=True)):
        for block in range(blocks):
            before = side
            if stage and not block:
                side = -(-side // 2)
            total += 2 * (before**2 * channels * width + side**2 * (9 * width**2 + 4 * width**2))
            if not block:
                total += 2 * side**2 * channels * 4 * width
            channels = 4 * width
    return total + 2 * side**2 * FEATURES * config.width
