"""What ModelScope's pipeline does with the files and keys of a published folder, for people."""

from collections.abc import Mapping

_READS, _IGNORES = "reads it", "does not read it"
_KEEPS = "keeps it and does not use it"
_TRAINING = "uses it in training alone"
_CODE = "would run it if the configuration allowed it; hotslot never does"
_FILES: Mapping[str, str] = {
    "configuration.json": _READS,
    "config.json": _READS,
    "vocab.json": _READS,
    "merges.txt": _READS,
    "added_tokens.json": "reads it, unless tokenizer_config.json lists added tokens",
    "special_tokens_map.json": "reads it, unless tokenizer_config.json lists added tokens",
    "tokenizer_config.json": _READS,
    "tokenizer.json": "reads its added tokens, unless tokenizer_config.json lists some",
    "preprocessor_config.json": "does not read it: size and mean come from configuration.json",
    "model.safetensors": "reads it before all other weight files",
    "model.safetensors.index.json": "reads it if there is no model.safetensors",
    "pytorch_model.bin": "reads it if there are no safetensors",
    "pytorch_model.bin.index.json": "reads it if there is no other weight file",
    "label_mapping.json": _READS,
}
_OF_ENGINE: Mapping[str, Mapping[str, str]] = {
    "ofa": {"vocab.txt": "does not read it, and fails without vocab.json"},
    "mgeo": {"vocab.txt": _READS, "vocab.json": _IGNORES, "merges.txt": _IGNORES},
}
_SUFFIXES: Mapping[str, str] = {
    ".py": _CODE,
    ".safetensors": "reads it if an index or a name says so",
    ".bin": "reads it if an index says so",
}
_TRAINED = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "classifier_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "encoder_drop_path_rate",
    "decoder_drop_path_rate",
    "resnet_drop_path_rate",
    "vit_drop_path_rate",
    "init_std",
    "initializer_range",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
_KEYS: Mapping[str, str] = {
    **{f"config.json: {key}": _TRAINING for key in _TRAINED},
    "config.json: resnet_model_path": "loads that file first, then the weights over it",
    "config.json: hidden_size": "reads it instead of d_model (OFA)",
    "config.json: num_attention_heads": "reads it instead of encoder_attention_heads (OFA)",
    "config.json: transformers_version": _KEEPS,
    "config.json: architectures": _KEEPS,
    "config.json: torch_dtype": "does not use it: computes in float32",
    "config.json: dtype": "does not use it: computes in float32",
    "configuration.json: train": _TRAINING,
    "configuration.json: dataset": "uses its column_map for the names of inputs, all else in training",
    "configuration.json: evaluation": _TRAINING,
    "configuration.json: pipeline": "chooses the pipeline by its type",
    "configuration.json: preprocessor": "does not use it for this task (OFA)",
    "configuration.json: model_file_sha256": "does not read it",
    "configuration.json: plugins": "installs and runs them",
    "configuration.json: allow_remote": "runs code of the repository if it is true",
    "configuration.json: model.beam_search": "uses it where gen_type is generation",
    "configuration.json: model.seed": "seeds the random numbers of training",
    "configuration.json: model.batch_size": _TRAINING,
    "configuration.json: model.valid_batch_size": "scores so many answers at a time; the scores are the same",
    "configuration.json: model.max_image_size": "uses it for other tasks",
}


def describe_file(engine: str, name: str, *, is_used: bool) -> str:
    """What the pipeline for an engine's models does with a file; files that hotslot uses it uses too."""
    known = {**_FILES, **_OF_ENGINE.get(engine, {})}
    suffix = name[name.rfind(".") :] if "." in name else ""
    return known.get(name) or (_READS if is_used else _SUFFIXES.get(suffix, _IGNORES))


def describe_key(engine: str, name: str, *, is_used: bool) -> str:
    """What the pipeline for an engine's models does with a key; keys that hotslot uses it uses too."""
    found = _KEYS.get(name, "")
    mark = found.rfind(" (OFA)")
    if mark >= 0:
        found = found[:mark] if engine == "ofa" else ""
    return found or (_READS if is_used else _KEEPS)
