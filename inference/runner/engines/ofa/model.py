"""The OFA network: from pixels and token ids to the probabilities of the three labels.

Architecture after Wang et al. 2022, "OFA: Unifying Architectures, Tasks, and Modalities Through a Simple
Sequence-to-Sequence Learning Framework" (https://arxiv.org/abs/2202.03052), reduced to visual entailment.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.ofa.attention import make_key_mask
from inference.runner.engines.ofa.config import LABELS, ONE_TOKEN_EACH, DecoderPrompt, EngineConfig, Fork
from inference.runner.engines.ofa.image_encoder import ImageEncoder
from inference.runner.engines.ofa.layers import Decoder, Embedding, Encoder, LayerNorm
from inference.runner.engines.ofa.positions import PositionBiases


def append_stem(prompts: Tensor, last: Tensor, stem: Sequence[int]) -> Tensor:
    """Append the answers' common tokens to each prompt.

    Args:
        prompts: (rows, longest) int64, padded on the right.
        last: (rows,) int64, position of each prompt's last token.
        stem: token ids, at least one.

    Returns:
        (rows, longest + len(stem)) int64; tokens after a shorter row's stem are padding that no scored position
        attends to.
    """
    positions = last[:, None] + torch.arange(1, len(stem) + 1, device=prompts.device)
    tokens = torch.cat([prompts.new_full((len(prompts), 1), token) for token in stem], dim=1)  # no copy from the host
    return F.pad(prompts, (0, len(stem))).scatter(1, positions, tokens)


def score_labels(hidden_states: Tensor, answer_embeddings: Tensor, forks: Sequence[Fork]) -> Tensor:
    """Compute the probability of each label.

    A label's score is the sum of the log-probabilities of its tokens at the forks, each over the tokens that some
    answer continues with; the three scores are normalised by a softmax.

    Args:
        hidden_states: (rows, forks, width), the decoder's output at the last token before each fork.
        answer_embeddings: (tokens, width), output embeddings of the tokens that answers continue with.
        forks: in order of depth.

    Returns:
        (rows, 3) float32, probabilities in the order of LABELS.
    """
    # Always float32: the cost is negligible, and a score rounded to bfloat16's 8 bits is off by up to 1 %.
    hidden_states, answer_embeddings = hidden_states.to(torch.float32), answer_embeddings.to(torch.float32)
    if tuple(forks) == ONE_TOKEN_EACH:
        return torch.softmax(hidden_states[:, 0] @ answer_embeddings.T, dim=-1)
    scores = hidden_states.new_zeros(len(hidden_states), len(LABELS))
    for number, fork in enumerate(forks):
        rows = sorted({row for row in fork.choices if row >= 0})
        embeddings = torch.stack([answer_embeddings[row] for row in rows])
        log_probabilities = torch.log_softmax(hidden_states[:, number] @ embeddings.T, dim=-1)
        for label, row in enumerate(fork.choices):
            if row >= 0:
                scores[:, label] += log_probabilities[:, rows.index(row)]
    return torch.softmax(scores, dim=-1)


class OfaModel(nn.Module):
    """Encoder over picture and text, decoder over the prompt, one row of label probabilities for each text.

    Names of parameters differ from those in `model.safetensors`: see `config.stored_name`.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Create the modules; `load_state_dict` supplies the weights."""
        super().__init__()
        self.config = config
        width = config.width
        self.image_encoder = ImageEncoder(config)
        self.token_embedding = Embedding(config.vocabulary, width)
        self.text_type_embedding = nn.Parameter(torch.empty(width))  # added to every text token
        self.text_norm = LayerNorm(width)
        self.encoder = Encoder(config.encoder_layers, width, config.encoder_heads, config.encoder_ffn)
        self.prompt_norm = LayerNorm(width)
        self.decoder = Decoder(config.decoder_layers, width, config.decoder_heads, config.decoder_ffn)
        self.answer_embeddings = nn.Parameter(torch.empty(config.answer_rows, width))  # rows: `Fork.choices`

    def forward(self, patch_features: Tensor, texts: Tensor, lengths: Tensor, biases: PositionBiases) -> Tensor:
        """Compute label probabilities.

        Args:
            patch_features: (rows, patches, width), from `image_encoder`.
            texts: (rows, longest) int64, prompts with begin and end token, padded on the right.
            lengths: (rows,) int64, tokens of each text, begin and end included.
            biases: of this model, on its device.

        Returns:
            (rows, 3) float32, probabilities in the order of LABELS.
        """
        tokens = biases.encoder.count_tokens(texts.shape[1])
        padding_mask = self._make_padding_mask(texts.shape[1], lengths, patch_features, tokens)
        memory = self._encode(patch_features, texts, padding_mask, biases, tokens)
        hidden_states = self._decode(memory, texts, lengths, padding_mask, biases)
        return score_labels(hidden_states, self.answer_embeddings, self.config.answer_forks)

    def forward_fixed(self, patch_features: Tensor, texts: Tensor, lengths: Tensor, biases: PositionBiases) -> Tensor:
        """As `forward`, for a GPU: all kernels follow from shapes alone, and none waits for the host.

        The arguments are those of `forward`; the biases are full ones.
        """
        patches = patch_features.shape[1]
        tokens = biases.encoder.count_tokens(texts.shape[1])
        key_mask = make_key_mask(lengths + patches, tokens, patch_features.dtype)
        embedded = self._embed(patch_features, texts, tokens)
        memory = self.encoder(embedded, lambda layer: biases.encoder.compute(layer, texts.shape[1]), key_mask)
        hidden_states = self._decode(memory, texts, lengths, key_mask[:, :, None, :, 0], biases)
        return score_labels(hidden_states, self.answer_embeddings, self.config.answer_forks)

    def _make_padding_mask(self, longest: int, lengths: Tensor, patch_features: Tensor, tokens: int) -> Tensor | None:
        """(rows, 1, 1, tokens), -inf where a row is padded, else 0; None if all rows have the same length."""
        positions = torch.arange(longest, device=lengths.device)
        is_padding = positions >= lengths[:, None]
        if not bool(is_padding.any()):
            return None  # all rows then share one bias
        rows, patches, _ = patch_features.shape
        mask = patch_features.new_zeros(rows, 1, 1, tokens)
        mask[:, 0, 0, patches : patches + longest].masked_fill_(is_padding, -torch.inf)
        return mask

    def _encode(
        self, patch_features: Tensor, texts: Tensor, padding_mask: Tensor | None, biases: PositionBiases, tokens: int
    ) -> Tensor:
        """(rows, tokens, width); tokens after the text are filler that the biases mask out."""

        def bias_of(layer: int) -> Iterator[Tensor]:
            shared = biases.encoder.compute(layer, texts.shape[1])
            return shared if padding_mask is None else (bias + padding_mask for bias in shared)

        result: Tensor = self.encoder(self._embed(patch_features, texts, tokens), bias_of)
        return result

    def _embed(self, patch_features: Tensor, texts: Tensor, tokens: int) -> Tensor:
        """(rows, tokens, width): patches, text and filler."""
        text = self.text_norm(self.token_embedding(texts) + self.text_type_embedding)
        filler = text.new_zeros(len(text), tokens - patch_features.shape[1] - text.shape[1], text.shape[2])
        return torch.cat([patch_features, text, filler], dim=1)

    def _decode(
        self, memory: Tensor, texts: Tensor, lengths: Tensor, padding_mask: Tensor | None, biases: PositionBiases
    ) -> Tensor:
        """(rows, forks, width): the decoder's output at the last token before each fork."""
        rows = torch.arange(len(texts), device=texts.device)[:, None]
        if self.config.decoder_prompt is DecoderPrompt.BEGIN:
            prompts, last = texts[:, :1], torch.zeros_like(lengths)
        elif self.config.decoder_prompt is DecoderPrompt.WHOLE:
            prompts, last = texts, lengths - 1
        else:
            # Without the end token. A shorter row keeps padding, to which its last token does not attend.
            prompts, last = texts[:, :-1], lengths - 2
        if self.config.answer_stem:
            prompts = append_stem(prompts, last, self.config.answer_stem)
        length = prompts.shape[1]
        cross = biases.cross(length, texts.shape[1], memory.shape[1])
        cross = cross if padding_mask is None else cross + padding_mask
        embedded = self.prompt_norm(self.token_embedding(prompts))
        hidden_states = self.decoder(embedded, memory, lambda layer: biases.decoder(layer, length), cross)
        positions = torch.stack([last + fork.read for fork in self.config.answer_forks], dim=1)
        result: Tensor = hidden_states[rows, positions]
        return result
