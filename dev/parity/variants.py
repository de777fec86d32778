"""The generated models of the fixtures: one ordinary, the others with all other supported options."""

from collections.abc import Mapping

import torch

from dev.parity.make_model import Recipe

# The stock search counts the prompt as part of its answer: under 16, as elsewhere, a longer question gets none.
_SEARCH = {"beam_size": 3, "max_len_b": 100, "min_len": 1, "no_repeat_ngram_size": 0}
GENERATING = Recipe(variant="plain", pipeline={"gen_type": "generation", "beam_search": _SEARCH})  # as "plain" answers
HALF = Recipe(variant="plain", dtype=torch.float16)  # stored in half precision
VARIANTS: Mapping[str, Recipe] = {
    "plain": Recipe(variant="plain"),
    "unusual": Recipe(
        variant="unusual",
        seed=11,
        architecture={
            "share_attn_bias": True,
            "scale_embedding": True,
            "add_type_embedding": False,
            "share_decoder_input_output_embed": False,
            "code_layernorm_embedding": False,
            "attn_scale_factor": 1.5,
            "encoder_layers": 3,
        },
        pipeline={"imagenet_default_mean_and_std": True, "patch_image_size": 72, "max_src_length": 24},
        as_safetensors=True,
    ),
    "begin": Recipe(variant="begin", seed=13, pipeline={"prompt_type": "none"}),
    "fresh": Recipe(variant="fresh", seed=17, is_fresh=True),
    # Answers of several tokens: two that part behind a common beginning, and one that is the other's beginning.
    "phrases": Recipe(variant="phrases", seed=19, answers=("there are no", "there are yes", "maybe")),
    "whole": Recipe(
        variant="whole",
        seed=23,
        architecture={"share_decoder_input_output_embed": False},
        pipeline={"prompt_type": "src"},
        answers=("no", "yes", "nothing maybe"),
    ),
}
