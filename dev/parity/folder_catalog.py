"""The folders that `dev.parity.compare_folders` compares: at least 120, by group."""

import json
from collections.abc import Iterator
from functools import partial

import torch

from dev.parity import folders as f
from dev.parity.folders import BIN, Change, Folder

CONFIG, PIPELINE, PREPROCESSOR = "config.json", "configuration.json", "preprocessor_config.json"
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
STREET = '{"added_tokens_decoder": {"1007": {"content": "street", "special": false}}}'
STANDING = '{"added_tokens": [{"id": 1009, "content": "standing"}]}'
ODD = torch.arange(9).view(3, 3).t()[:2]  # not dense


def all_folders() -> list[Folder]:
    """Every folder."""
    return f.number(_all())


def _all() -> Iterator[Folder]:
    for group, rows in _PLAIN.items():
        yield from (Folder(group, name, "plain", change) for name, change in rows.items())
    for base in ("unusual", "begin", "fresh", "phrases", "whole", "shapes", "shapes-1.1"):
        yield Folder("whole models", "as it is", base, f.both())
    for base in ("shapes", "shapes-1.1", "unusual", "phrases"):
        yield from (Folder("saved again", name, base, change) for name, change in _SAVED.items())


_SAVED: dict[str, Change] = {
    "as the trainers save": f.both(f.saved(f.prefixed("model.")), f.top(num_bins=1000, num_codes=8192)),
    "safetensors": f.flat,
    "half precision": f.saved(f.cast(torch.float16)),
    "bfloat16": f.saved(f.cast(torch.bfloat16)),
    "shards": f.sharded,
}
_PREFIXES: dict[str, Change] = {
    "model.": f.saved(f.prefixed("model.")),
    "model. with index tables": f.saved(lambda tensors: f.prefixed("model.")(f.with_tables(tensors))),
    "model. in safetensors": partial(f.flat, prefix="model."),
    "model. in shards": partial(f.sharded, prefix="model."),
    "model. as an old pickle": f.saved(f.prefixed("model."), old=True),
    "module.": f.saved(f.prefixed("module.")),
    "module.model.": f.saved(f.prefixed("module.model.")),
    "_orig_mod.": f.saved(f.prefixed("_orig_mod.")),
    "net. in safetensors": partial(f.flat, prefix="net."),
    "model. beside plain names": f.saved(lambda tensors: {**f.moved(tensors), **f.prefixed("model.")(tensors)}),
    "model. with surplus": f.saved(lambda tensors: {**f.prefixed("model.")(tensors), "fc.weight": torch.zeros(2)}),
    "two students": f.saved(lambda tensors: {**f.prefixed("a.")(tensors), **f.prefixed("b.")(f.moved(tensors))}),
}
_WRAPPED: dict[str, Change] = {
    "state_dict": f.saved(lambda tensors: {"state_dict": tensors, "epoch": 3}),
    "model": f.saved(lambda tensors: {"model": tensors, "args": {"lr": 0.1}}),
    "Lightning": f.saved(
        lambda tensors: {
            "epoch": 1,
            "state_dict": f.prefixed("model.")(tensors),
            "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
        }
    ),
    "EMA beside": f.saved(lambda tensors: {"model": tensors, "model_ema": f.moved(tensors)}),
    "only EMA": f.saved(lambda tensors: {"ema": tensors}),
    "student and teacher": f.saved(lambda tensors: {"student": tensors, "teacher": f.moved(tensors)}),
    "deeper": f.saved(lambda tensors: {"checkpoint": {"model": {"weights": tensors}}}),
    "epoch beside the tensors": f.saved(lambda tensors: {**tensors, "epoch": 3}),
    "a list": f.saved(lambda tensors: [tensors]),
    "meta and state_dict": f.saved(
        lambda tensors: {"meta": {"time": "now"}, "state_dict": f.prefixed("model.")(tensors)}
    ),
}
_SURPLUS: dict[str, Change] = {
    "encoder.version": f.saved(lambda tensors: {**tensors, "encoder.version": torch.tensor([3.0])}),
    "ema.*": f.saved(lambda tensors: {**tensors, **f.prefixed("ema.")(f.moved(tensors))}),
    "unused fc": f.saved(lambda tensors: {**tensors, "encoder.embed_images.fc.weight": torch.zeros(10, 20)}),
    "a layer more": f.saved(
        lambda tensors: {
            **tensors,
            **{k.replace("layers.1.", "layers.2."): v for k, v in tensors.items() if "layers.1." in k},
        }
    ),
    "a strided one": f.saved(lambda tensors: {**tensors, "extra": ODD}),
    "an integer one": f.saved(lambda tensors: {**tensors, "step": torch.tensor(7)}),
    "in safetensors": f.both(f.saved(lambda tensors: {**tensors, "fc.weight": torch.zeros(2)}), f.flat),
}
_BROKEN: dict[str, Change] = {
    "a tensor missing": f.saved(f.without(r"encoder\.layers\.0\.fc1\.weight")),
    "a layer missing": f.saved(f.without(r"encoder\.layers\.1\.")),
    "a bias of another shape": f.saved(lambda tensors: {**tensors, "encoder.layer_norm.bias": torch.zeros(65)}),
    "embedding of another vocabulary": f.keys(CONFIG, vocab_size=10217),
    "truncated": lambda folder: (folder / BIN).write_bytes((folder / BIN).read_bytes()[:-50_000]),
    "empty": f.write(BIN, b""),
    "Git LFS pointer": f.write(BIN, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "HTML page": f.write(BIN, "<!DOCTYPE html><html><title>Sign in</title></html>"),
    "another model": f.saved(
        lambda tensors: {f"bert.{number}": tensor for number, tensor in enumerate(tensors.values())}
    ),
}
_PRECISIONS: dict[str, Change] = {
    "float16": f.saved(f.cast(torch.float16)),
    "bfloat16": f.saved(f.cast(torch.bfloat16)),
    "float64": f.saved(f.cast(torch.float64)),
    "float16 safetensors": partial(f.flat, dtype=torch.float16),
    "float64 safetensors": partial(f.flat, dtype=torch.float64),
    "mixed": f.saved(lambda tensors: {k: v.half() if "fc1" in k else v for k, v in tensors.items()}),
    "config says float16": f.keys(CONFIG, torch_dtype="float16"),
    "config says dtype": f.keys(CONFIG, dtype="bfloat16"),
    "not contiguous": f.saved(
        lambda tensors: {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in tensors.items()}
    ),
}
_LAYOUTS: dict[str, Change] = {
    "as it is": f.both(),
    "old pickle": f.saved(dict, old=True),
    "safetensors": f.flat,
    "shards": f.sharded,
    "shards of torch": partial(f.sharded, suffix=".bin"),
    "safetensors beside torch": f.keep_both,
    "vocab.txt beside vocab.json": f.write("vocab.txt", "a\nb\n"),
    "vocab.txt alone": f.both(
        lambda folder: (folder / "vocab.txt").write_text(
            "\n".join(json.loads((folder / "vocab.json").read_text())) + "\n", encoding="utf-8"
        ),
        f.remove("vocab.json"),
    ),
    "no answer map": f.remove("ans2label.json"),
    "no merges": f.remove("merges.txt"),
    "no config": f.remove(CONFIG),
    "README and code": f.both(
        f.write("README.md", "# x"), f.write("readme.md", "# y"), f.write("ms_wrapper.py", "1/0")
    ),
    "generation_config": f.write("generation_config.json", '{"num_beams": 9, "bos_token_id": 5}'),
}
_TEXT_FILES: dict[str, Change] = {
    "merges without last newline": f.edit("merges.txt", lambda text: text.removesuffix("\n")),
    "merges with CRLF": f.edit("merges.txt", lambda text: text.replace("\n", "\r\n")),
    "merges with CRLF, no last": f.edit("merges.txt", lambda text: text.replace("\n", "\r\n").removesuffix("\r\n")),
    "merges without header": f.edit("merges.txt", lambda text: text.split("\n", 1)[1]),
    "merges with blank lines": f.edit("merges.txt", lambda text: text + "\n\n"),
    "merges with a BOM": f.edit("merges.txt", lambda text: "\ufeff" + text),
    "merges with a triple": f.edit("merges.txt", lambda text: text + "a b c\n"),
    "merges twice": f.edit("merges.txt", lambda text: text + text.split("\n", 1)[1]),
    "merges reversed": f.edit("merges.txt", lambda text: "\n".join(["#v", *text.strip().split("\n")[:0:-1], ""])),
    "vocabulary with CRLF": f.edit("vocab.json", lambda text: text.replace(", ", ",\r\n")),
    "vocabulary with a BOM": f.edit("vocab.json", lambda text: "\ufeff" + text),
    "vocabulary without mask": f.edit("vocab.json", lambda text: text.replace('"<mask>"', '"maskedword"')),
    "vocabulary not JSON": f.edit("vocab.json", lambda text: text[:-10]),
    "config with a BOM": f.edit(CONFIG, lambda text: "\ufeff" + text),
}
_ADDED: dict[str, Change] = {
    "a word that the vocabulary has": f.write("added_tokens.json", '{"people": 1000}'),
    "one word": f.add_words({"people": 1000}),
    "one word, not in the embedding": f.add_words({"people": 99_999}),
    "two words, one in the other": f.add_words({"umbrella": 1001, "umbrellas": 1002}),
    "a word of the vocabulary": f.add_words({"dog": 900}),
    "a word in the middle": f.add_words({"nd": 1003}),
    "a word with blanks": f.add_words({"two birds": 1004}),
    "capitals": f.add_words({"WOMAN": 1005}),
    "codes as saved": f.add_words({f"<code_{number}>": 1024 + number for number in range(8192)}),
    "codes elsewhere": f.add_words({f"<code_{number}>": 1100 + number for number in range(100)}),
    "special by the map": f.both(
        f.add_words({"[IMG]": 1006}),
        f.write("special_tokens_map.json", '{"additional_special_tokens": ["[IMG]"]}'),
    ),
    "another pad token": f.write("special_tokens_map.json", '{"pad_token": "<unk>"}'),
    "decoder in tokenizer_config": f.both(f.free_numbers({1007}), f.write("tokenizer_config.json", STREET)),
    "decoder beside added_tokens": f.both(
        f.free_numbers({1007}), f.add_words({"birds": 1008}), f.write("tokenizer_config.json", STREET)
    ),
    "single_word": f.both(
        f.free_numbers({1007}), f.write("tokenizer_config.json", STREET.replace("}}}", ', "single_word": true}}}'))
    ),
    "tokenizer.json": f.both(f.free_numbers({1009}), f.write("tokenizer.json", STANDING)),
    "split_special_tokens": f.both(
        f.add_words({"people": 1000}), f.write("tokenizer_config.json", '{"split_special_tokens": true}')
    ),
    "add_prefix_space": f.write("tokenizer_config.json", '{"add_prefix_space": true}'),
    "left truncation": f.write("tokenizer_config.json", '{"truncation_side": "left"}'),
    "another class": f.write("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer", "do_lower_case": false}'),
    "short maximum": f.write("tokenizer_config.json", '{"model_max_length": 8}'),
}
_PICTURES: dict[str, Change] = {
    "ImageNet": f.keys(PIPELINE, imagenet_default_mean_and_std=True),
    "preprocessor: values 0 to 255": f.keys(PREPROCESSOR, image_mean=[127.5] * 3, image_std=[127.5] * 3),
    "preprocessor: CLIP's": f.keys(PREPROCESSOR, **CLIP),
    "preprocessor: the same": f.keys(PREPROCESSOR, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=96),
    "preprocessor: two sizes": f.keys(PREPROCESSOR, image_size=64, size=96),
    "preprocessor: shortest_edge": f.keys(PREPROCESSOR, size={"shortest_edge": 224}),
    "preprocessor: std 0": f.keys(PREPROCESSOR, image_std=[0, 0, 0]),
    "preprocessor: not JSON": f.write(PREPROCESSOR, "{"),
    "preprocessor, no size beside": f.both(f.keys(PREPROCESSOR, size=64), f.keys(PIPELINE, patch_image_size=None)),
    "size 64": f.keys(PIPELINE, patch_image_size=64),
    "size 50": f.keys(PIPELINE, patch_image_size=50),
    "size 128": f.keys(PIPELINE, patch_image_size=128),
    "size 144": f.keys(PIPELINE, patch_image_size=144),
    "size as text": f.keys(PIPELINE, patch_image_size="96"),
    "size 0": f.keys(PIPELINE, patch_image_size=0),
    "size negative": f.keys(PIPELINE, patch_image_size=-96),
    "ImageNet as 1": f.keys(PIPELINE, imagenet_default_mean_and_std=1),
}
_CONFIG: dict[str, Change] = {
    "hidden_size alone": f.keys(CONFIG, d_model=None, hidden_size=64),
    "hidden_size beside d_model": f.keys(CONFIG, d_model=128, hidden_size=64),
    "num_attention_heads alone": f.keys(CONFIG, encoder_attention_heads=None, num_attention_heads=4),
    "num_attention_heads beside": f.keys(CONFIG, num_attention_heads=2),
    "num_hidden_layers": f.keys(CONFIG, num_hidden_layers=1),
    "fewer layers": f.keys(CONFIG, encoder_layers=1),
    "dropout": f.keys(CONFIG, dropout=0.5, attention_dropout=0.5, encoder_layerdrop=0.5, encoder_drop_path_rate=0.3),
    "use_cache off": f.keys(CONFIG, use_cache=False),
    "return_dict off": f.keys(CONFIG, return_dict=False),
    "tie_word_embeddings off": f.keys(CONFIG, tie_word_embeddings=False),
    "disable_entangle": f.keys(CONFIG, disable_entangle=True),
    "other start token": f.keys(CONFIG, decoder_start_token_id=5, bos_token_id=7, eos_token_id=9),
    "resnet_model_path": f.keys(CONFIG, resnet_model_path="/tmp/none.pth"),  # noqa: S108 - never opened
    "gelu_new": f.keys(CONFIG, activation_function="gelu_new"),
    "scale factor": f.keys(CONFIG, attn_scale_factor=1.0),
    "scale_embedding": f.keys(CONFIG, scale_embedding=True),
    "no model_type": f.keys(CONFIG, model_type=None),
    "output_attentions": f.keys(CONFIG, output_attentions=True, output_hidden_states=True),
    "heads that do not divide": f.keys(CONFIG, encoder_attention_heads=5),
    "unknown keys": f.keys(CONFIG, my_key={"a": [1]}, id2label={"0": "x"}),
}
_PIPELINE: dict[str, Change] = {
    "generation": f.keys(PIPELINE, gen_type="generation"),
    "no gen_type": f.keys(PIPELINE, gen_type=None),
    "prompt_type none": f.keys(PIPELINE, prompt_type="none"),
    "max_src_length 8": f.keys(PIPELINE, max_src_length=8),
    "no max_src_length": f.keys(PIPELINE, max_src_length=None),
    "valid_batch_size 1": f.keys(PIPELINE, valid_batch_size=1),
    "valid_batch_size 2": f.keys(PIPELINE, valid_batch_size=2),
    "batch_size 8": f.keys(PIPELINE, batch_size=8, max_image_size=1024),
    "a prompt": f.keys(PIPELINE, prompt=" is it true that {} ?"),
    "another seed": f.keys(PIPELINE, seed=3, num_return_sequences=1),
    "train and dataset": f.top(train={"work_dir": "work"}, dataset={"train": {"name": "snli-ve"}}),
    "columns renamed": f.top(dataset={"column_map": {"text": "caption"}}),
    "another language": f.keys(PIPELINE, language="zh"),
    "num_bins": f.top(num_bins=1000, num_codes=8192),
    "unknown section": f.top(hooks=[{"type": "x"}]),
    "answers: two": f.write("ans2label.json", '{"no": 0, "yes": 1}'),
    "answers: numbers as text": f.write("ans2label.json", '{"no": "0", "yes": "1", "maybe": "2"}'),
    "answers: other order": f.write("ans2label.json", '{"maybe": 0, "no": 1, "yes": 2}'),
    "answers: entailment": f.write("ans2label.json", '{"contradiction": 0, "entailment": 1, "neutral": 2}'),
}
_PLAIN: dict[str, dict[str, Change]] = {
    "prefixes": _PREFIXES,
    "wrapped": _WRAPPED,
    "surplus tensors": _SURPLUS,
    "broken weights": _BROKEN,
    "precisions": _PRECISIONS,
    "layouts": _LAYOUTS,
    "text files": _TEXT_FILES,
    "added words": _ADDED,
    "pictures": _PICTURES,
    "config.json": _CONFIG,
    "configuration.json": _PIPELINE,
}
