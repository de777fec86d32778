"""The whole OFA: from pixels and token ids to the answers' probabilities."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from inference.runner.engines.ofa.config import LABELS, ONE_TOKEN_EACH, DecoderPrompt, EngineConfig, Fork
from inference.runner.engines.ofa.image_encoder import FEATURES, ResNet
from inference.runner.engines.ofa.layers import Decoder, Embedding, Encoder, LayerNorm, Linear
from inference.runner.engines.ofa.positions import PositionBiases


def with_stem(prompts: Tensor, last: Tensor, stem: Sequence[int]) -> Tensor:
    """Let the stem follow each prompt.

    Args:
        prompts: (rows, longest) int64, padded on the right.
        last: (rows,) int64, place of each prompt's last token.
        stem: tokens, at least one.

    Returns:
        (rows, longest + stem) int64; what stands behind a shorter row's stem is never looked at.
    """
    places = last[:, None] + torch.arange(1, len(stem) + 1, device=prompts.device)
    tokens = torch.tensor(stem, device=prompts.device).expand(len(prompts), -1)
    return F.pad(prompts, (0, len(stem))).scatter(1, places, tokens)


def probabilities(made: Tensor, answers: Tensor, forks: Sequence[Fork]) -> Tensor:
    """Score the answers.

    Args:
        made: (rows, forks, width), what the decoder makes of the last token that it read at each fork.
        answers: (tokens, width), of the tokens by which answers go on.
        forks: in order of depth.

    Returns:
        (rows, 3) float32, probabilities in the order of LABELS.
    """
    # In full precision whatever came before: it costs nothing, and a score rounded to 8 bits is off by 1 %.
    made, answers = made.to(torch.float32), answers.to(torch.float32)
    if tuple(forks) == ONE_TOKEN_EACH:
        return torch.softmax(made[:, 0] @ answers.T, dim=-1)
    scores = made.new_zeros(len(made), len(LABELS))
    for number, fork in enumerate(forks):
        rows = sorted({row for row in fork.choices if row >= 0})
        shares = torch.log_softmax(made[:, number] @ answers[rows].T, dim=-1)
        for label, row in enumerate(fork.choices):
            if row >= 0:
                scores[:, label] += shares[:, rows.index(row)]
    return torch.softmax(scores, dim=-1)


class Eyes(nn.Module):
    """Pictures to the encoder's picture tokens; they depend on nothing else, so they can be kept."""

    def __init__(self, config: EngineConfig) -> None:
        """Make the network."""
        super().__init__()
        self.resnet = ResNet(config.resnet_blocks)
        self.project = Linear(FEATURES, config.width)
        self.norm = LayerNorm(config.width)
        self.mean = config.image_mean
        self.deviation = config.image_deviation

    def forward(self, pixels: Tensor) -> Tensor:
        """Look at pictures.

        Args:
            pixels: (pictures, size, size, 3) uint8, RGB.

        Returns:
            (pictures, patches, width).
        """
        mean = torch.tensor(self.mean, device=pixels.device)
        deviation = torch.tensor(self.deviation, device=pixels.device)
        scaled = pixels.to(torch.float32).div_(255).sub_(mean).div_(deviation)
        # Seen as (pictures, 3, size, size) this is channels-last, which convolutions like best.
        features = self.resnet(scaled.to(self.project.weight.dtype).permute(0, 3, 1, 2))
        result: Tensor = self.norm(self.project(features))
        return result


class OfaModel(nn.Module):
    """Encoder over picture and text, decoder over the prompt, one row of scores a text."""

    def __init__(self, config: EngineConfig) -> None:
        """Make the network; its weights come by `load_state_dict`."""
        super().__init__()
        self.config = config
        width = config.width
        self.eyes = Eyes(config)
        self.words = Embedding(config.vocabulary, width)
        self.text_kind = nn.Parameter(torch.empty(width))  # says "this is text"
        self.text_norm = LayerNorm(width)
        self.encoder = Encoder(config.encoder_layers, width, config.encoder_heads, config.encoder_ffn)
        self.prompt_norm = LayerNorm(width)
        self.decoder = Decoder(config.decoder_layers, width, config.decoder_heads, config.decoder_ffn)
        self.answers = nn.Parameter(torch.empty(config.answer_rows, width))  # by `config.answer_forks`

    def forward(self, looks: Tensor, texts: Tensor, lengths: Tensor, biases: PositionBiases) -> Tensor:
        """Answer.

        Args:
            looks: (rows, patches, width), from `eyes`.
            texts: (rows, longest) int64, prompts with begin and end, padded on the right.
            lengths: (rows,) int64, tokens of each text, begin and end included.
            biases: of this model, on its device.

        Returns:
            (rows, 3) float32, probabilities in the order of LABELS.
        """
        tokens = biases.encoder.tokens(texts.shape[1])
        hidden = self._hidden_padding(texts.shape[1], lengths, looks, tokens)
        memory = self._encode(looks, texts, hidden, biases, tokens)
        made = self._decode(memory, texts, lengths, hidden, biases)
        return probabilities(made, self.answers, self.config.answer_forks)

    def _hidden_padding(self, longest: int, lengths: Tensor, looks: Tensor, tokens: int) -> Tensor | None:
        """(rows, 1, 1, tokens), −inf where a row is padded; None if none is shorter than the longest."""
        positions = torch.arange(longest, device=lengths.device)
        padded = positions >= lengths[:, None]
        if not bool(padded.any()):
            return None  # then biases are shared by all rows
        rows, patches, _ = looks.shape
        hidden = looks.new_zeros(rows, 1, 1, tokens)
        hidden[:, 0, 0, patches : patches + longest].masked_fill_(padded, -torch.inf)
        return hidden

    def _encode(
        self, looks: Tensor, texts: Tensor, hidden: Tensor | None, biases: PositionBiases, tokens: int
    ) -> Tensor:
        """(rows, tokens, width); those after the text are hidden from all others."""
        words = self.text_norm(self.words(texts) + self.text_kind)
        rest = words.new_zeros(len(words), tokens - looks.shape[1] - words.shape[1], words.shape[2])

        def made(layer: int) -> Iterator[Tensor]:
            shared = biases.encoder.of(layer, words.shape[1])
            return shared if hidden is None else (bias + hidden for bias in shared)

        result: Tensor = self.encoder(torch.cat([looks, words, rest], dim=1), made)
        return result

    def _decode(
        self, memory: Tensor, texts: Tensor, lengths: Tensor, hidden: Tensor | None, biases: PositionBiases
    ) -> Tensor:
        """(rows, forks, width): what the decoder makes of the last token that it has read where answers part."""
        rows = torch.arange(len(texts), device=texts.device)[:, None]
        if self.config.decoder_prompt is DecoderPrompt.BEGIN:
            prompts, last = texts[:, :1], torch.zeros_like(lengths)
        elif self.config.decoder_prompt is DecoderPrompt.WHOLE:
            prompts, last = texts, lengths - 1
        else:
            # Without the end. A shorter row is padded, which its last token never sees.
            prompts, last = texts[:, :-1], lengths - 2
        if self.config.answer_stem:
            prompts = with_stem(prompts, last, self.config.answer_stem)
        asked = prompts.shape[1]
        cross = biases.cross(asked, texts.shape[1], memory.shape[1])
        cross = cross if hidden is None else cross + hidden
        made = self.decoder(
            self.prompt_norm(self.words(prompts)), memory, lambda layer: biases.decoder(layer, asked), cross
        )
        places = torch.stack([last + fork.read for fork in self.config.answer_forks], dim=1)
        result: Tensor = made[rows, places]
        return result
