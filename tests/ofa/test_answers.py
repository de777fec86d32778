"""Answers of several tokens are scored as in ModelScope's pipeline, at the positions where they differ."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.source import ConversionRefused
from dev.parity.make_model import Recipe, make_model
from dev.parity.pictures import FOLDER
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.conversion.ofa_config import read_architecture
from inference.runner.conversion.ofa_plan import plan_ofa
from inference.runner.conversion.ofa_vocabulary import assign_answers, find_forks, read_vocabulary
from inference.runner.engines.base import EntailmentItem, RowRange
from inference.runner.engines.ofa.config import ONE_TOKEN_EACH, Fork, read_config
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.model import append_stem, score_labels
from tests.ofa.conftest import Publish

END, WIDTH = 9, 16
Paths = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def plain_rule(paths: Paths, made: Callable[[tuple[int, ...]], Tensor], table: Tensor) -> Tensor:
    """The stock rule, written down plainly: each answer in turn, under a mask of what some answer has there."""
    scores = []
    for path in paths:
        score = torch.zeros(())
        for place, token in enumerate(path):
            allowed = sorted({other[place] for other in paths if other[:place] == path[:place]})
            hidden = torch.full((len(table),), -torch.inf)
            hidden[allowed] = 0
            score = score + torch.log_softmax(table @ made(path[:place]) + hidden, dim=-1)[token]
        scores.append(score)
    return torch.softmax(torch.stack(scores), dim=-1)


def every_map() -> list[Paths]:
    """Many maps of three answers of one to four tokens, most of which share a beginning."""
    chance = random.Random(3)
    maps: list[Paths] = [((1, END), (2, END), (3, END)), ((1, END), (1, 2, END), (1, 2, 3, END))]
    while len(maps) < 200:
        one, two, three = ((*chance.choices((1, 2), k=chance.randrange(1, 5)), END) for _ in range(3))
        if len({one, two, three}) == 3:
            maps.append((one, two, three))
    return maps


def test_forks_give_the_same_scores_as_the_plain_rule() -> None:
    """Over 200 maps, the softmaxes along one way give each answer's probability as the masked sums do."""
    draw = torch.Generator().manual_seed(5)
    table = torch.randn(10, WIDTH, generator=draw)
    states = {
        read: torch.randn(WIDTH, generator=draw)
        for length in range(6)
        for read in itertools.product((1, 2, 3, END), repeat=length)
    }

    for paths in every_map():
        answers = find_forks(paths)
        made = torch.stack([states[answers.stem[: fork.read]] for fork in answers.forks])[None]
        found = score_labels(made, table[list(answers.tokens)], answers.forks)[0]

        assert torch.allclose(found, plain_rule(paths, states.__getitem__, table), atol=1e-6), paths
        assert len(answers.forks) <= 2


@pytest.mark.parametrize(
    ("paths", "stem", "forks", "tokens"),
    [
        (((1, END), (2, END), (3, END)), (), ONE_TOKEN_EACH, (1, 2, 3)),
        (((1, 4, END), (2, 4, END), (3, END)), (), ONE_TOKEN_EACH, (1, 2, 3)),
        (((1, 4, END), (1, 5, END), (3, END)), (1,), (Fork(0, (0, 0, 1)), Fork(1, (2, 3, -1))), (1, 3, 4, 5)),
        (((1, END), (2, END), (1, 2, END)), (1,), (Fork(0, (0, 1, 0)), Fork(1, (2, -1, 3))), (1, 2, END, 2)),
        (((7, 8, 1, END), (7, 8, 2, END), (7, 8, 3, END)), (7, 8), (Fork(2, (0, 1, 2)),), (1, 2, 3)),
    ],
)
def test_forks_of_answers(paths: Paths, stem: tuple[int, ...], forks: tuple[Fork, ...], tokens: tuple[int]) -> None:
    """Only forks are scored: shared tokens are read once, and tokens after an answer's last fork never."""
    answers = find_forks(paths)

    assert (stem, forks, tokens) == (answers.stem, answers.forks, answers.tokens)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("no", "yes", "maybe"), ("yes", "no", "maybe")),
        (("Definitely yes!", "absolutely no", "well, maybe"), ("Definitely yes!", "absolutely no", "well, maybe")),
        (("neutral", "contradiction", "entailment"), ("entailment", "contradiction", "neutral")),
        (("not sure, maybe", "yes", "no"), ("yes", "no", "not sure, maybe")),
    ],
)
def test_an_answer_s_label_follows_from_its_word(answers: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """The word that means yes, no or maybe decides the label, whatever surrounds it."""
    found = assign_answers({answer: number for number, answer in enumerate(answers)})

    assert expected == tuple(found.values())


@pytest.mark.parametrize(
    "answers", [("yes", "no"), ("yes", "yes sir", "no"), ("yes no", "no", "maybe"), ("a", "b", "c")]
)
def test_answers_without_a_unique_label_are_refused(answers: tuple[str, ...]) -> None:
    """The message names the answers."""
    with pytest.raises(ConversionRefused, match=f"answers are .*{answers[0]}.*, supported: one answer for each of yes"):
        assign_answers(dict.fromkeys(answers, 0))


def test_the_stem_follows_each_prompt() -> None:
    """For prompts of different lengths."""
    prompts = torch.tensor([[5, 6, 7], [5, 2, 1]])

    found = append_stem(prompts, torch.tensor([2, 0]), (8, 9))

    assert [found[0].tolist(), found[1, :3].tolist()] == [[5, 6, 7, 8, 9], [5, 8, 9]]


class Rows:
    """Counts what the decoder reads."""

    def __init__(self, decoder: nn.Module) -> None:
        self.shapes: list[tuple[int, ...]] = []
        decoder.register_forward_pre_hook(lambda _module, inputs: self.shapes.append(tuple(inputs[0].shape[:2])))


@pytest.mark.parametrize(("variant", "surplus"), [("plain", -1), ("phrases", 4), ("whole", 1)])
def test_a_statement_costs_one_row(variant: str, surplus: int, engines: Callable[[str], OfaEngine]) -> None:
    """However many tokens answers have, a statement is one row of the decoder: its prompt and the stem."""
    engine = engines(variant)
    rows = Rows(engine.model.decoder)
    item = engine.prepare(EntailmentItem((FOLDER / "grey.jpg").read_bytes(), ("a dog", "a man"), ""))

    engine.compute([RowRange(item, 0, 2)])

    assert [(2, max(map(len, item.prompts)) + surplus)] == rows.shapes


def test_single_token_answers_add_no_keys_to_the_bundle(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """Where answers differ at their first token, engine.json has no keys of multi-token answers."""
    convert_ofa(sources("plain"), tmp_path, "r", "float32")

    written = json.loads((tmp_path / "engine.json").read_text(encoding="utf-8"))

    assert not {"answer_stem", "answer_forks"} & set(written)
    assert read_config(tmp_path).answer_forks == ONE_TOKEN_EACH


def test_multi_token_answers_are_stored_in_the_bundle(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """engine.json has their stem and forks."""
    convert_ofa(sources("phrases"), tmp_path, "r", "float32")
    words = read_vocabulary(sources("phrases"), read_architecture(sources("phrases")), "ans2label.json")

    config = read_config(tmp_path)

    assert (words.answers.stem, words.answers.forks) == (config.answer_stem, config.answer_forks)
    assert len(words.answers.tokens) == config.answer_rows


def test_labels_that_are_several_tokens_in_their_vocabulary(publish: Publish) -> None:
    """Without merges every letter is a token, and "yes", "no" and "maybe" still part at one place."""
    folder = publish(without=("merges.txt",))
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")

    answers = plan_ofa(folder).vocabulary.answers

    assert (len(answers.stem), answers.forks) == (1, (Fork(1, (0, 1, 2)),))


def test_answers_that_are_too_long_for_the_positions(tmp_path: Path) -> None:
    """A prompt of full length with the stem behind it must have a position for each token."""
    architecture = {"max_position_embeddings": 42}
    make_model(tmp_path, Recipe(architecture=architecture, answers=("there are no", "there are yes", "maybe")))

    with pytest.raises(ConversionRefused, match="the decoder reads up to 47 tokens, supported: 44 positions"):
        plan_ofa(tmp_path)
