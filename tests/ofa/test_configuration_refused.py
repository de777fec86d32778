"""An unsupported configuration is refused with file, key, value and the supported values."""

import json
from pathlib import Path

import pytest

from common.source import ConversionRefused
from dev.parity.words import vocabulary
from inference.runner.conversion.ofa_config import Architecture, PipelineConfig, read_architecture, read_pipeline
from inference.runner.conversion.ofa_vocabulary import order_labels, read_vocabulary
from inference.runner.engines.ofa.config import DecoderPrompt
from tests.ofa.conftest import Publish


def read(folder: Path) -> tuple[Architecture, PipelineConfig]:
    """Read everything but the weights."""
    architecture = read_architecture(folder)
    pipeline = read_pipeline(folder, architecture)
    read_vocabulary(folder, architecture, pipeline.answer_map)
    return architecture, pipeline


def refusal(folder: Path) -> str:
    """The sentence that a folder gets."""
    with pytest.raises(ConversionRefused) as caught:
        read(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("gen_type", "sample", 'configuration.json: model.gen_type is \'sample\', supported: "traverse", "generation"'),
        ("prompt_type", "all", 'model.prompt_type is \'all\', supported: "none", "prev_output", "src"'),
        ("type", "mplug", "configuration.json: model.type is 'mplug', supported: \"ofa\""),
        ("language", "zh", "configuration.json: model.language is 'zh', supported: \"en\""),
        ("patch_image_size", "480", "model.patch_image_size is '480', supported: an integer from 16 to 2048"),
        ("patch_image_size", 144, "model.patch_image_size is 144, supported: at most 16 × image_bucket_size = 128"),
        ("max_src_length", 1000, "model.max_src_length is 1000, supported: an integer from 1 to 256"),
        ("max_src_length", True, "model.max_src_length is True, supported: an integer"),
        ("imagenet_default_mean_and_std", 1, "model.imagenet_default_mean_and_std is 1, supported: true or false"),
        ("answer2label", "../answers.json", "model.answer2label is '../answers.json', supported: the name of a file"),
        ("prompt", "is {} true?", "model.prompt is 'is {} true?', supported: no such key"),
        ("multimodal_type", "text2sql", "model.multimodal_type is 'text2sql', supported: \"default\""),
    ],
)
def test_pipeline_keys(key: str, value: object, sentence: str, publish: Publish) -> None:
    """Keys of configuration.json."""
    assert sentence in refusal(publish(model={key: value}))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("resnet_type", "vit", "config.json: resnet_type is 'vit', supported: \"resnet18\""),
        ("use_ofasys", True, "config.json: use_ofasys is True, supported: false"),
        ("normformer", False, "config.json: normformer is False, supported: true"),
        ("normformer", 1, "config.json: normformer is 1, supported: true"),
        ("entangle_position_embedding", True, "entangle_position_embedding is True, supported: false"),
        ("activation_function", "relu", "activation_function is 'relu', supported: \"gelu\""),
        ("encoder_attention_heads", 5, "encoder_attention_heads is 5, supported: a divisor of d_model = 64"),
        ("d_model", 10**9, "d_model is 1000000000, supported: an integer from 8 to 8192"),
        ("encoder_layers", 2.0, "encoder_layers is 2.0, supported: an integer from 1 to 96"),
        ("attn_scale_factor", float("nan"), "attn_scale_factor is nan, supported: a number from 0.01 to 100"),
        ("vocab_size", 500, "the vocabulary uses ids up to 1023, config.json: vocab_size is 500"),
        ("pad_token_id", 2, "config.json: pad_token_id is 2, the vocabulary has 1"),
    ],
)
def test_architecture_keys(key: str, value: object, sentence: str, publish: Publish) -> None:
    """Keys of config.json."""
    assert sentence in refusal(publish(architecture={key: value}))


def test_another_task_is_refused(publish: Publish) -> None:
    """The task is read, not assumed."""
    assert "configuration.json: task is 'image-captioning'" in refusal(publish(top={"task": "image-captioning"}))


def test_a_path_to_other_weights_is_never_followed(publish: Publish) -> None:
    """`resnet_model_path` is not read."""
    require_record = read(publish(architecture={"resnet_model_path": "/etc/passwd"}))

    assert read(publish()) == require_record


def test_defaults_are_those_of_the_original(publish: Publish) -> None:
    """Missing keys have the defaults of ModelScope's pipeline."""
    folder = publish(model={"prompt_type": None, "gen_type": None, "imagenet_default_mean_and_std": None})

    pipeline = read_pipeline(folder, read_architecture(folder))

    assert DecoderPrompt.BEGIN is pipeline.decoder_prompt
    assert pipeline.image_mean == (0.5, 0.5, 0.5)


def test_the_answer_map_may_be_named_at_the_top(publish: Publish) -> None:
    """Older repositories say `answer2label` beside `model`."""
    at_the_top = read(publish(model={"answer2label": None}, top={"answer2label": "ans2label.json"}))

    assert read(publish()) == at_the_top


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"image_size": 224}, "preprocessor_config.json: image_size is 224, supported: 96, as in configuration.json"),
        (
            {"size": {"height": 96, "width": 97}},
            "size is {'height': 96, 'width': 97}, supported: equal height and width",
        ),
        ({"mean": [0.4, 0.4, 0.4]}, "mean is (0.4, 0.4, 0.4), supported: (0.5, 0.5, 0.5), as in configuration.json"),
        ({"image_std": [0.5, 0.5]}, "image_std is [0.5, 0.5], supported: three numbers"),
    ],
)
def test_contradictions_are_refused(row: dict[str, object], sentence: str, publish: Publish) -> None:
    """Two files with different values for one setting are refused."""
    folder = publish()
    (folder / "preprocessor_config.json").write_text(json.dumps(row))

    assert sentence in refusal(folder)


def test_the_alternative_layout_is_read(publish: Publish) -> None:
    """Tokens as lines of vocab.txt, size and mean from preprocessor_config.json."""
    folder = publish(without=("vocab.json",), model={"patch_image_size": None, "imagenet_default_mean_and_std": None})
    words = vocabulary(1024)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in words), encoding="utf-8")
    row = {"size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(row))

    architecture = read_architecture(folder)
    pipeline = read_pipeline(folder, architecture)

    assert (pipeline.image_size, pipeline.image_mean) == (64, (0.4, 0.5, 0.6))
    assert words == read_vocabulary(folder, architecture, pipeline.answer_map).ids


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "ans2label.json",
            '{"yes": 0, "no": 1}',
            "answers are no, yes, supported: one answer for each of yes, no, maybe",
        ),
        ("ans2label.json", '{"yes": 0, "no": 1, "yes or no": 2}', "supported: one answer for each of yes, no, maybe"),
        ("ans2label.json", '{"yes": 0, "no": 1, "maybe": 2, "maybe not": 3}', "supported: one answer for each of"),
        ("ans2label.json", '{"yes": 0, "no": 1, "unknown": 2}', "supported: one answer for each of yes, no, maybe"),
        ("ans2label.json", json.dumps({"yes": 0, "no": 1, "maybe" * 99: 2}), "the answers are"),
        (
            "ans2label.json",
            json.dumps({"yes": 0, "no": 1, "maybe " * 99: 2}),
            "tokens or contains an unknown one",
        ),
        ("ans2label.json", "[1, 2, 3]", "ans2label.json is not a JSON object"),
        ("vocab.json", '{"<s>": 0, "<pad>": 0}', "the vocabulary has a duplicate token"),
        ("vocab.json", '{"<s>": 0, "<pad>": 1, "</s>": 2}', "the vocabulary lacks '<unk>'"),
        ("vocab.json", "{", "vocab.json is not JSON: expecting property name enclosed in double quotes at the end of"),
        (
            "config.json",
            '{\n "a": 1,\n "b": 02\n}',
            "is not JSON: expecting ',' delimiter in line 3, column 8, at '\"b\": 0",
        ),
        ("config.json", "version https://git-lfs.github.com/spec/v1", "config.json is a Git LFS pointer, not the file"),
        ("ans2label.json", "", "ans2label.json is empty: its upload was not finished"),
        ("merges.txt", "<!DOCTYPE html><title>Sign in</title>", "merges.txt is an HTML page ('Sign in'), not the file"),
        ("vocab.json", "[" * 100_000, "vocab.json is not JSON"),
        ("merges.txt", "#version\na b c\n", "merges.txt: line 2 is 'a b c', supported: two parts separated by a space"),
        ("config.json", "null", "config.json is not a JSON object"),
    ],
)
def test_broken_files_are_refused(name: str, content: str, sentence: str, publish: Publish) -> None:
    """Files that are not JSON, or contain something other than vocabulary and answers."""
    folder = publish(without=(name,))
    (folder / name).write_text(content, encoding="utf-8")

    assert sentence in refusal(folder)


@pytest.mark.reason("CONFIG_UNSUPPORTED")
@pytest.mark.reason("VOCABULARY_BROKEN")
@pytest.mark.reason("ANSWERS_UNSUPPORTED")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", {"a": 0, "b": 0}, "VOCABULARY_BROKEN"),
        ("ans2label.json", {"yes": 0, "no": 1}, "ANSWERS_UNSUPPORTED"),
        ("config.json", {"model_type": "bert"}, "CONFIG_UNSUPPORTED"),
    ],
)
def test_every_kind_of_defect_has_its_reason(name: str, content: object, reason: str, publish: Publish) -> None:
    """For programs that read the refusal."""
    folder = publish(without=(name,))
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConversionRefused) as caught:
        read(folder)
    assert reason == caught.value.reason


@pytest.mark.parametrize(
    ("answer_map", "labels"),
    [
        ({"no": 0, "yes": 1, "maybe": 2}, ("no", "yes", "maybe")),
        ({"maybe": 2, "yes": 1, "it does not: no": 0}, ("no", "yes", "maybe")),
        ({"maybe": "neutral", "yes": "entailment", "no": "contradiction"}, ("maybe", "yes", "no")),
    ],
)
def test_labels_have_the_order_of_the_answer_map(answer_map: dict[str, object], labels: tuple[str, ...]) -> None:
    """The order of its numbers, or of the file if it has none."""
    assert labels == order_labels(answer_map)
