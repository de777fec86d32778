"""Damaged folders of one engine: what only a model for pictures, or only one for addresses, can have."""

from dev.parity import folders as f
from dev.parity.damage import (
    ANSWERS,
    CONFIG,
    LABELS,
    PIPELINE,
    Damages,
    edit_row,
    keys_for_values,
    model_keys,
    put,
    rename_tensors,
    renamed,
    replace,
    values_as_text,
)
from dev.parity.folders import BIN


def of_ofa() -> Damages:
    """Damages that only a model for pictures can have."""
    return {**_weights_of_ofa(), **_tables_of_ofa()}


def _weights_of_ofa() -> Damages:
    running = "encoder.embed_images.layer1.0.bn2.running_var"
    return {
        "more layers": (
            f.keys(CONFIG, decoder_layers=6),
            f"decoder_layers is 6, but {BIN} was saved with 2: it has no",
        ),
        "a prefix on one part": (
            rename_tensors("decoder.", "module.decoder."),
            f"{BIN}: only the names of decoder.… (92) begin with 'module.': save all with one prefix",
        ),
        "a layer's other name": (
            rename_tensors("encoder.layers.0.", "encoder.layer.0."),
            "encoder.layer.0.… (21 tensors) have the names and shapes of encoder.layers.0.…: rename them",
        ),
        "one other name": (
            rename_tensors("encoder.layers.0.fc1.", "encoder.layers.0.fc_1."),
            "encoder.layers.0.fc_1.… (2 tensors) have the names and shapes of encoder.layers.0.fc1.…: rename them",
        ),
        "another ResNet": (
            f.keys(CONFIG, resnet_type="resnet152"),
            "was saved with resnet18: it has no tensor encoder.e",
        ),
        "a larger grid": (f.keys(CONFIG, image_bucket_size=42), f"image_bucket_size is 42, but {BIN} was saved with 8"),
        "a variance": (put(running, -2.0), f"tensor {running} holds a negative variance"),
        "a larger picture": (
            model_keys(patch_image_size=480),
            "is 480, supported: at most 16 × image_bucket_size = 128",
        ),
    }


def _tables_of_ofa() -> Damages:
    """Of answers and vocabulary."""
    vocabulary = "vocab.json"
    return {
        "no answer map": (f.remove(ANSWERS), "the revision lacks ans2label.json (which configuration.json names)"),
        "two answers": (
            replace(ANSWERS, '{"yes": 0, "no": 1}'),
            "ans2label.json: the answers are no, yes, supported: one",
        ),
        "no answers": (replace(ANSWERS, "{}"), "ans2label.json: the answers are none, supported: one answer for each"),
        "misspelt answers": (
            edit_row(PIPELINE, lambda row: {**row, "model": renamed("answer2label", "answer2lable")(row["model"])}),
            "model.answer2label is missing, supported: the name of a file of the revision (is answer2lable a misspelli",
        ),
        "an id twice": (
            edit_row(vocabulary, lambda row: {**row, "zz": 5}),
            "vocab.json: the vocabulary has a duplicate id: ",
        ),
        "ids as text": (
            values_as_text(vocabulary),
            ' is "0", supported: ',
        ),
        "ids for tokens": (
            keys_for_values(vocabulary),
            "ids exchanged?",
        ),
        "no padding": (edit_row(vocabulary, renamed("<pad>", "<p>")), "vocab.json lacks '<pad>': the vocabulary has"),
        "fewer rows": (f.keys(CONFIG, vocab_size=500), "uses ids up to 1023, config.json: vocab_size is 500"),
        "merges of JSON": (
            replace("merges.txt", "{\n{'a b c'}\n"),
            "merges.txt: line 2 is \"{'a b c'}\", supported: two",
        ),
        "a word too far": (replace("added_tokens.json", '{"zz": 99999}'), "the added word 'zz' has number 99999"),
    }


def of_mgeo() -> Damages:
    """Damages that only a model for addresses can have."""
    return {**_weights_of_mgeo(), **_labels_of_mgeo(), **_vocabulary_of_mgeo()}


def _labels_of_mgeo() -> Damages:
    nothing = f.both(
        f.remove(LABELS), edit_row(CONFIG, lambda row: {key: row[key] for key in row if "label" not in key})
    )
    placeholders = f.both(
        f.remove(LABELS), f.keys(CONFIG, label2id={f"LABEL_{number}": number for number in range(85)})
    )
    few = f"label_mapping.json has 80 labels, but {BIN} was saved with 85: tensor classifier.weight has shape (85, 64)"
    return {
        "labels too few": (edit_row(LABELS, lambda row: dict(list(row.items())[:80])), few),
        "a label too many": (
            edit_row(LABELS, lambda row: {**row, "B-zz": 85}),
            f"has 86 labels, but {BIN} was saved with 85",
        ),
        "a hole": (
            edit_row(LABELS, lambda row: {key: one for key, one in row.items() if one != 7}),
            "no label has 7, and ",
        ),
        "a number twice": (
            edit_row(LABELS, lambda row: {**row, "B-zz": 7}),
            "each once: 'E-city' and 'B-zz' are both 7",
        ),
        "numbers as text": (
            values_as_text(LABELS),
            "of 'O' is \"0\", su",
        ),
        "labels for numbers": (
            keys_for_values(LABELS),
            "numbers with their",
        ),
        "nested labels": (edit_row(LABELS, lambda row: {"label2id": row}), "label_mapping.json has 'label2id' with "),
        "no labels": (replace(LABELS, "{}"), "label_mapping.json has 0 labels, supported: 1 to 4096"),
        "other positions": (
            edit_row(LABELS, lambda row: {key.replace("I-", "M-"): row[key] for key in row}),
            "label 'M-prov'",
        ),
        "labels nowhere": (nothing, "nothing says what the model's outputs mean"),
        "placeholders": (placeholders, "placeholders, such as LABEL_0, that libraries write for lack of labels"),
    }


def _weights_of_mgeo() -> Damages:
    return {
        "BERT's names": (
            rename_tensors("bert.text_encoder.", "bert."),
            f"{BIN} has 37 tensors under 'bert.', expected 'bert.text_encoder.': rename them",
        ),
        "no beginning": (rename_tensors("bert.text_encoder.", ""), "tensors lack the beginning 'bert.text_encoder.'"),
        "another head": (
            rename_tensors("classifier.", "fc."),
            f"{BIN} has 2 tensors under 'fc.', expected 'classifier.': rename them",
        ),
        "a head without the prefix": (
            rename_tensors("bert.", "mgeo.bert."),
            f"{BIN}: the names of classifier.… (2) do not begin with 'mgeo.' as the others do: save all",
        ),
        "a layer count": (f.keys(CONFIG, num_hidden_layers=1), f"but {BIN} has 2 layers: correct num_hidden_layers"),
        "a fusion layer": (f.keys(CONFIG, fusion_layer=6), f"but {BIN} has 2 layers: correct fusion_layer"),
    }


def _vocabulary_of_mgeo() -> Damages:
    """And of the tokeniser."""
    vocabulary = "vocab.txt"
    return {
        "a token twice": (f.edit(vocabulary, lambda text: text + "a\n"), "vocab.txt has a token twice: lines "),
        "a blank line": (f.edit(vocabulary, lambda text: text + "\n"), "vocab_size is 294; line 295 is empty"),
        "columns": (f.edit(vocabulary, lambda text: text.replace("\n", "\t1\n")), "its lines have several columns"),
        "a vocabulary of JSON": (
            replace(vocabulary, '{"[CLS]": 0}\n'),
            "vocab.txt lacks [CLS], [SEP], [UNK]: it is JSON",
        ),
        "one line": (
            f.edit(vocabulary, lambda text: text.replace("\n", " ")),
            "it has 1 line, the first is '[PAD] [UN",
        ),
        "another tokeniser": (
            replace("tokenizer_config.json", '{"tokenizer_class": "T5"}'),
            'tokenizer_class is "T5", sup',
        ),
        "a flag as text": (
            replace("tokenizer_config.json", '{"do_lower_case": "true"}'),
            'do_lower_case is "true", supp',
        ),
    }
