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
        ("gen_type", "sample", 'configuration.json: model.gen_type is "sample", supported: "traverse", "generation"'),
        ("prompt_type", "all", 'model.prompt_type is "all", supported: "none", "prev_output", "src"'),
        ("type", "mplug", 'configuration.json: model.type is "mplug", supported: "ofa"'),
        ("language", "zh", 'configuration.json: model.language is "zh", supported: "en"'),
        ("patch_image_size", "480", 'model.patch_image_size is "480", supported: an integer from 16 to 2048'),
        ("patch_image_size", 144, "model.patch_image_size is 144, supported: at most 16 × image_bucket_size = 128"),
        ("max_src_length", 1000, "model.max_src_length is 1000, supported: an integer from 1 to 256"),
        ("max_src_length", True, "model.max_src_length is true, supported: an integer"),
        ("imagenet_default_mean_and_std", 1, "model.imagenet_default_mean_and_std is 1, supported: true or false"),
        ("answer2label", "../answers.json", 'model.answer2label is "../answers.json", supported: the name of a file'),
        ("prompt", "is {} true?", 'model.prompt is "is {} true?", supported: no such key'),
        ("multimodal_type", "text2sql", 'model.multimodal_type is "text2sql", supported: "default"'),
    ],
)
def test_pipeline_keys(key: str, value: object, sentence: str, publish: Publish) -> None:
    """Keys of configuration.json."""
    assert sentence in refusal(publish(model={key: value}))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("resnet_type", "vit", 'config.json: resnet_type is "vit", supported: "resnet18"'),
        ("use_ofasys", True, "config.json: use_ofasys is true, supported: false"),
        ("normformer", False, "config.json: normformer is false, supported: true"),
        ("normformer", 1, "config.json: normformer is 1, supported: true"),
        ("entangle_position_embedding", True, "entangle_position_embedding is true, supported: false"),
        ("activation_function", "relu", 'activation_function is "relu", supported: "gelu"'),
        ("encoder_attention_heads", 5, "encoder_attention_heads is 5, supported: a divisor of d_model = 64"),
        ("d_model", 10**9, "d_model is 1000000000, supported: an integer from 8 to 8192"),
        ("encoder_layers", 2.0, "encoder_layers is 2.0, supported: an integer from 1 to 96"),
        ("attn_scale_factor", float("nan"), "attn_scale_factor is NaN, supported: a number from 0.01 to 100"),
        ("vocab_size", 500, "the vocabulary uses ids up to 1023, config.json: vocab_size is 500"),
        ("pad_token_id", 2, "config.json: pad_token_id is 2, the vocabulary has 1"),
    ],
)
def test_architecture_keys(key: str, value: object, sentence: str, publish: Publish) -> None:
    """Keys of config.json."""
    assert sentence in refusal(publish(architecture={key: value}))


def test_another_task_is_refused(publish: Publish) -> None:
    """The task is read, not assumed."""
    assert 'configuration.json: task is "image-captioning"' in refusal(publish(top={"task": "image-captioning"}))


def test_a_path_to_other_weights_is_never_followed(publish: Publish) -> None:
    """`resnet_model_path` is not read."""
    architecture, _ = read(publish(architecture={"resnet_model_path": "/etc/passwd"}))

    assert read(publish())[0] == architecture
    assert architecture.notes == ("config.json: resnet_model_path is not followed; the weight file has all tensors",)


def test_defaults_are_those_of_the_original(publish: Publish) -> None:
    """Missing keys have the defaults of ModelScope's pipeline."""
    folder = publish(model={"prompt_type": None, "gen_type": None, "imagenet_default_mean_and_std": None})

    pipeline = read_pipeline(folder, read_architecture(folder))

    assert DecoderPrompt.BEGIN is pipeline.decoder_prompt
    assert pipeline.image_mean == (0.5, 0.5, 0.5)


def test_the_answer_map_may_be_named_at_the_top(publish: Publish) -> None:
    """Older repositories say `answer2label` beside `model`."""
    at_the_top = read(publish(model={"answer2label": None}, top={"answer2label": "ans2label.json"}))[1]

    assert at_the_top.answer_map == read(publish())[1].answer_map
    assert "answer2label is read at the top level" in at_the_top.notes[0]


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (
            {"image_mean": [127.5] * 3},
            ": image_mean [127.5, 127.5, 127.5] do not apply; by configuration.json",
        ),
        (
            {"image_size": 64, "size": 96},
            ": image_size 64 do not apply; by configuration.json pictures are scaled",
        ),
        ({"size": {"shortest_edge": 224}}, ': size {"shortest_edge": 224} do not apply'),
        ({"image_std": [0, 0, 0]}, ": image_std [0, 0, 0] do not apply"),
        ({"size": {"height": 96, "width": 96}, "mean": [0.5] * 3, "do_resize": True}, "by ModelScope's pipeline"),
    ],
)
@pytest.mark.fault("H22")
@pytest.mark.fault("C10")
def test_the_preprocessor_is_ignored_and_noted(row: dict[str, object], note: str, publish: Publish) -> None:
    """ModelScope's pipeline reads size and mean from configuration.json alone, and so does this engine."""
    folder = publish()
    (folder / "preprocessor_config.json").write_text(json.dumps(row))

    pipeline = read(folder)[1]

    assert (pipeline.image_size, pipeline.image_mean, pipeline.image_deviation) == (96, (0.5,) * 3, (0.5,) * 3)
    assert [note in one for one in pipeline.notes] == [True]


@pytest.mark.fault("H22")
def test_other_names_of_keys_count(publish: Publish) -> None:
    """hidden_size for d_model and num_attention_heads for encoder_attention_heads win, as in ModelScope's pipeline."""
    architecture, _ = read(publish(architecture={"d_model": 128, "hidden_size": 64, "num_attention_heads": 2}))

    assert (architecture.width, architecture.encoder_heads, architecture.decoder_heads) == (64, 2, 2)
    assert architecture.notes == (
        "config.json: hidden_size 64, not d_model 128, counts, as in ModelScope's pipeline",
        "config.json: num_attention_heads 2, not encoder_attention_heads 4, counts, as in ModelScope's pipeline",
    )


@pytest.mark.fault("H22")
def test_words_of_a_text_file_are_read(publish: Publish) -> None:
    """Tokens as lines of vocab.txt, with any kind of line end."""
    folder = publish(without=("vocab.json",))
    words = vocabulary(1024)
    (folder / "vocab.txt").write_bytes("".join(f"{token}\r\n" for token in words).encode())
    architecture = read_architecture(folder)

    found = read_vocabulary(folder, architecture, "ans2label.json")

    assert words == found.ids
    assert "vocab.txt: its lines end with carriage returns (CRLF)" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "merges", "notes"),
    [
        ("#version\na b\nc d\n", 2, 0),
        ("#version\na b\nc d", 1, 1),
        ("#version\r\na b\r\nc d\r\n", 2, 1),
        ("a b\nc d\n", 1, 1),
        ("\ufeff#version\na b\n\n", 1, 2),
    ],
)
@pytest.mark.fault("H22")
def test_merges_are_read_as_by_the_stock_tokeniser(text: str, merges: int, notes: int, publish: Publish) -> None:
    """Without the first line, and without a last line that has no end."""
    folder = publish(without=("merges.txt",))
    (folder / "merges.txt").write_bytes(text.encode())

    found = read_vocabulary(folder, read_architecture(folder), "ans2label.json")

    about_lines = [note for note in found.notes if "is it of another model?" not in note]
    assert (len(found.merges), len(about_lines)) == (merges, notes)


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
        ("vocab.json", '{"<s>": 0, "<pad>": 0}', "the vocabulary has a duplicate id: '<s>' and '<pad>' are both 0"),
        ("vocab.json", '{"<s>": 0, "<pad>": 1, "</s>": 2}', "vocab.json lacks '<unk>'"),
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
