"""Reads and checks the configuration of a published MGeo: network, tokeniser, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.engine_files import CONFIGURATION, describe_unknown_sections
from common.source import ConversionRefused
from inference.runner.conversion.config_file import ConfigSection, SizeKey, read_section
from inference.runner.conversion.declared_hash import read_weights_hash
from inference.runner.conversion.mgeo_labels import ARCHITECTURE, describe_label_files, read_labels
from inference.runner.conversion.refusals import DisagreementRefused
from inference.runner.conversion.text_lines import read_lines
from inference.runner.engines.mgeo.config import MAX_VOCABULARY_BYTES, VOCABULARY_NAME, WordRules

TOKENIZER = "tokenizer_config.json"
DEFAULT_WINDOW = 512  # tokens; what ModelScope's pipeline takes where the preprocessor has no max_length
_SIZES = {  # keys of sizes, by the field of Architecture
    "hidden_size": "width",
    "intermediate_size": "ffn",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
    "type_vocab_size": "segments",
}
_PREPROCESSORS = ("token-cls-tokenizer", "ner-tokenizer", "sequence-labeling-tokenizer")
SLOW_NOTE = (
    "tokenizer_config.json does not set use_fast: ModelScope's pipeline fails on an address with a character that the"
    " vocabulary lacks; here it is answered"
)
WINDOW_NOTE = (
    "ModelScope's pipeline cuts an address after {} tokens without notice; here a longer one is read in windows that"
    " overlap"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The network, from `config.json`."""

    width: int
    layers: int  # that compute; a checkpoint may hold further ones, for pictures of a map
    stored_layers: int
    heads: int
    ffn: int
    vocabulary: int  # rows of the token embedding
    positions: int  # rows of the position embedding
    segments: int  # rows of the segment embedding
    activation: str
    norm_epsilon: float
    padding: int = 0  # number of the token that fills up batches, by the configuration
    notes: tuple[str, ...] = field(default=(), compare=False)  # for display
    sizes: tuple[SizeKey, ...] = field(default=(), compare=False, repr=False)


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`; ignores unlisted keys.

    Raises:
        ConversionRefused: a value is not supported.
    """
    keys = read_section(folder, ARCHITECTURE)
    keys.get_choice("model_type", "bert", ("bert", "mgeo"))
    keys.get_choice("position_embedding_type", "absolute", ("absolute",))
    keys.get_choice("gis_embedding", 0, (0,))
    keys.get_choice("add_cross_attention", default=False, supported=(False,))
    keys.get_choice("is_decoder", default=False, supported=(False,))
    width = keys.get_count("hidden_size", 768, 8, 8192)
    heads = keys.get_count("num_attention_heads", 12, 1, 256)
    if width % heads:
        supported = f"a divisor of hidden_size = {width}"
        keys.refuse("num_attention_heads", heads, supported, [(keys.location, "hidden_size")])
    layers = keys.get_count("num_hidden_layers", 12, 1, 96)
    architecture = Architecture(
        width=width,
        layers=keys.get_count("fusion_layer", layers, 1, 96),
        stored_layers=layers,
        heads=heads,
        ffn=keys.get_count("intermediate_size", 3072, 1, 65536),
        vocabulary=keys.get_count("vocab_size", 30522, 5, 1 << 20),
        positions=keys.get_count("max_position_embeddings", 512, 3, 8192),
        segments=keys.get_count("type_vocab_size", 2, 1, 64),
        activation=str(keys.get_choice("hidden_act", "gelu", ("gelu", "relu"))),
        norm_epsilon=keys.get_number("layer_norm_eps", 1e-12, 1e-15, 1e-1),
    )
    padding = keys.get("pad_token_id", 0)
    architecture = replace(architecture, padding=padding if type(padding) is int else 0)
    sizes = [keys.get_size(key, attribute, getattr(architecture, attribute)) for key, attribute in _SIZES.items()]
    layer_key = "fusion_layer" if keys.has("fusion_layer") else "num_hidden_layers"
    sizes.append(keys.get_size(layer_key, "layers", architecture.layers))
    return replace(architecture, notes=keys.describe_misspelt(), sizes=tuple(sizes))


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """How texts are read, and the labels."""

    window: int  # tokens, begin and end token included
    labels: tuple[str, ...]  # by number
    labels_from: str  # the file, or the file and the key
    words: WordRules
    begin: str  # tokens
    end: str
    notes: tuple[str, ...]  # for display
    weights_hash: object = None  # that the publisher states


def read_pipeline(folder: Path, architecture: Architecture) -> PipelineConfig:
    """Read how inputs are prepared and what the labels are.

    Raises:
        ConversionRefused: a value is not supported.
    """
    top = read_section(folder, CONFIGURATION)
    top.get_choice("framework", "pytorch", ("pytorch",))
    top.get_choice("task", None, ("token-classification",))
    model = top.get_section("model")
    model.get_choice("type", None, ("mgeo",))
    model.get_choice("finetune_mode", "single-modal", ("single-modal",))
    preprocessor = top.get_section("preprocessor")
    if "type" not in preprocessor.values:
        preprocessor = preprocessor.get_section("val")
    preprocessor.get_choice("type", _PREPROCESSORS[0], _PREPROCESSORS)
    longest = architecture.positions
    window = preprocessor.get_count("max_length", min(DEFAULT_WINDOW, longest), 3, longest)
    tokenizer = (
        read_section(folder, TOKENIZER) if (folder / TOKENIZER).is_file() else ConfigSection(f"{TOKENIZER}: ", {})
    )
    tokenizer.get_choice("tokenizer_class", "BertTokenizer", ("BertTokenizer", "BertTokenizerFast"))
    by_character = preprocessor.get_flag("is_split_into_words", default=False)
    notes = [WINDOW_NOTE.format(window), *architecture.notes, *describe_unknown_sections(top.values)]
    if not (by_character or _is_fast(preprocessor, tokenizer)):
        notes.append(SLOW_NOTE)
    labels, labels_from = read_labels(folder, top)
    notes += describe_label_files(folder, labels, labels_from)
    notes += [note for section in (top, model, preprocessor, tokenizer) for note in section.describe_misspelt()]
    return PipelineConfig(
        window=window,
        labels=labels,
        labels_from=labels_from,
        words=_read_word_rules(tokenizer, by_character=by_character),
        begin=_read_token(tokenizer, "cls_token", "[CLS]"),
        end=_read_token(tokenizer, "sep_token", "[SEP]"),
        notes=tuple(notes),
        weights_hash=read_weights_hash(top),
    )


def _is_fast(preprocessor: ConfigSection, tokenizer: ConfigSection) -> bool:
    if preprocessor.get("use_fast") is not None:
        return preprocessor.get_flag("use_fast", default=False)
    return tokenizer.get("use_fast") is not None and tokenizer.get_flag("use_fast", default=False)


def _read_word_rules(tokenizer: ConfigSection, *, by_character: bool) -> WordRules:
    lowercase = tokenizer.get_flag("do_lower_case", default=True)
    has_own = tokenizer.get("strip_accents") is not None
    return WordRules(
        lowercase=lowercase,
        strip_accents=tokenizer.get_flag("strip_accents", default=lowercase) if has_own else lowercase,
        split_ideographs=tokenizer.get_flag("tokenize_chinese_chars", default=True),
        by_character=by_character,
        unknown=_read_token(tokenizer, "unk_token", "[UNK]"),
    )


def _read_token(tokenizer: ConfigSection, key: str, default: str) -> str:
    """A special token, written as a string or as an object with its `content`."""
    value = tokenizer.get(key, default)
    if isinstance(value, Mapping):
        value = value.get("content")
    if not isinstance(value, str) or not value:
        tokenizer.refuse(key, value, "a token")
    return value


def _describe_form(lines: Sequence[str]) -> str:
    """What a vocabulary has instead of a token a line."""
    form = f"it has {len(lines)} line{'s' if len(lines) > 1 else ''}, the first is {lines[0][:40]!r}"
    if lines[0].startswith(("{", "[{", '["')):
        form = "it is JSON"
    elif all("\t" in line for line in lines):
        form = "its lines have several columns"
    return f"{form}; supported: one token a line, as trained"


def read_vocabulary(
    folder: Path, architecture: Architecture, needed: tuple[str, ...]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Read `vocab.txt`: a token a line, whose number is the line's; and notes for people.

    Raises:
        ConversionRefused: the file is not UTF-8 text, has a token twice, lacks one of `needed`, or has more tokens than
            the embedding has rows.
        OSError: it cannot be read.
    """
    read = read_lines(folder, VOCABULARY_NAME, MAX_VOCABULARY_BYTES)
    ids: dict[str, int] = {}
    for number, token in enumerate(read.lines):
        if ids.setdefault(token, number) != number:
            message = f"{VOCABULARY_NAME} has a token twice: lines {ids[token] + 1} and {number + 1} are {token[:40]!r}"
            raise ConversionRefused("VOCABULARY_BROKEN", message)
    rows, counted = (
        architecture.vocabulary,
        f"{VOCABULARY_NAME} has {len(read.lines)} tokens, {ARCHITECTURE}: vocab_size is",
    )
    if len(read.lines) > rows:
        end = f"; line {len(read.lines)} is empty" if not read.lines[-1] else ""
        key = (f"{ARCHITECTURE}: ", "vocab_size")
        raise DisagreementRefused("VOCABULARY_BROKEN", f"{counted} {rows}{end}", VOCABULARY_NAME, [key])
    notes = read.notes
    if len(read.lines) < rows:
        notes = (*notes, f"{counted} {rows}: if lines were removed, every token after them has another number")
    missing = [token for token in needed if token not in ids]
    if missing:
        lacks = f"{VOCABULARY_NAME} lacks {', '.join(missing)[:80]}"
        raise ConversionRefused("VOCABULARY_BROKEN", f"{lacks}: {_describe_form(read.lines)}")
    padding = ids.get("[PAD]", architecture.padding)
    if padding != architecture.padding:
        pad = f"[PAD] has number {padding}, {ARCHITECTURE}: pad_token_id is {architecture.padding}"
        notes = (*notes, f"{VOCABULARY_NAME}: {pad}: are the tokens in another order than in training?")
    return ids, notes
