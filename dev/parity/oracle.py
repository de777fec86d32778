"""The stock pipeline of a published folder, patched to return all three probabilities instead of only the best answer.

Runs in the parity environment only.
"""

import contextlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from examples.shapes import stock_imports  # noqa: F401 - makes modelscope importable
from inference.runner.conversion.ofa_vocabulary import assign_answers

# isort: split
from modelscope.models.multi_modal import ofa_for_all_tasks
from modelscope.models.multi_modal.ofa import OFAModel
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

VERSIONED = ("modelscope", "torch", "transformers", "tokenizers", "torchvision", "pillow", "numpy")


def versions() -> dict[str, str]:
    """Versions of the oracle's packages."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


@contextlib.contextmanager
def _listen_to_loading(missing: list[str]) -> Iterator[None]:
    """Collect the parameters that `from_pretrained` finds in no file."""
    original = OFAModel._load_pretrained_model.__func__  # noqa: SLF001 - the only place that knows

    def load(cls: type, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  of the library
        result = original(cls, *arguments, **options)
        tables = ("_rp_bucket", "image_position_idx", "num_batches_tracked", "position_ids")
        missing.extend(name for name in result[1] if not name.endswith(tables))
        return result

    OFAModel._load_pretrained_model = classmethod(load)  # noqa: SLF001
    try:
        yield
    finally:
        OFAModel._load_pretrained_model = classmethod(original)  # noqa: SLF001


class _TappedFunctions:
    """Replaces torch.nn.functional in the pipeline's module and records its last softmax."""

    def __init__(self) -> None:
        self.heard: Tensor | None = None

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        self.heard = F.softmax(x, dim=dim)
        return self.heard

    def __getattr__(self, name: str) -> object:
        return getattr(F, name)


class Oracle:
    """The stock pipeline of one folder."""

    def __init__(self, folder: Path) -> None:
        """Load the folder and check that the pipeline uses its weights.

        Raises:
            RuntimeError: it initialised some of them randomly.
        """
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        self._random: list[str] = []
        with _listen_to_loading(self._random):
            self._pipeline: Any = pipeline(Tasks.visual_entailment, model=str(folder.resolve()), device="cpu")
        self._tap = _TappedFunctions()
        ofa_for_all_tasks.F = self._tap
        settings = self._pipeline.model.cfg.model
        self._prompt_type = settings.get("prompt_type", "none")
        self._traverses = settings.gen_type == "traverse" and self._prompt_type == "prev_output"
        self._labels = {answer: label for label, answer in assign_answers(self._pipeline.model.ans2label_dict).items()}
        if self._prompt_type == "src":
            # Known to its training and to its sibling tasks alone: asked for the rest of the sample.
            self._pipeline.preprocessor.preprocess.prompt_type = "none"

    def check_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare the pipeline's weights with those in the files.

        Raises:
            RuntimeError: they differ.
        """
        loaded = self._pipeline.model.model.state_dict()
        wrong = [name for name in tensors if not torch.equal(tensors[name].float(), loaded[name].float())]
        tables = ("_rp_bucket", "image_position_idx", "num_batches_tracked")
        wrong += [name for name in loaded if name not in tensors and not name.endswith(tables)]
        if wrong:
            raise RuntimeError(f"the pipeline did not load {', '.join(wrong[:5])}")

    def find_random_weights(self) -> list[str]:
        """Parameters that no file set: the pipeline leaves them random, and only logs it."""
        return self._random

    def ask(self, picture: Path, statement: str, premise: str) -> dict[str, float]:
        """Probability of each label's answer.

        Raises:
            RuntimeError: the pipeline's answer differs from its softmax.
        """
        item = _item_of(picture, statement, premise)
        if not self._traverses:
            return self._ask_model(item)
        found, result = self._heard(lambda: self._pipeline(item))
        label = self._labels[result["labels"]]
        if label != max(found, key=found.__getitem__) or abs(result["scores"] - found[label]) > 0:
            raise RuntimeError("the recorded softmax differs from the pipeline's answer")
        return found

    def _heard(self, ask: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        """The last softmax of a call, by label, and the call's result."""
        self._tap.heard = None
        with torch.no_grad():
            result = ask()
        if self._tap.heard is None:
            raise RuntimeError("the pipeline came to no softmax")
        answers: dict[int, str] = self._pipeline.model.index2ans
        return {self._labels[answers[place]]: float(p) for place, p in enumerate(self._tap.heard[0])}, result

    def _ask_model(self, item: Mapping[str, str]) -> dict[str, float]:
        """Call the stock model's traversal of the answers directly.

        A pipeline that generates returns 1.0 for every answer, and one whose decoder begins with
        nothing but the begin token ("prompt_type": "none"), or with the whole prompt ("src"), fails
        on every item.

        Raises:
            RuntimeError: the pipeline gives another answer.
        """
        sample = self._sample(item)
        inputs = {"input_ids": sample["source"][None], "patch_images": sample["patch_image"][None]}
        inputs["patch_masks"] = sample["patch_mask"]
        prompt = sample["source"] if self._prompt_type == "src" else sample["decoder_prompt"]
        asked = {"net_input": inputs, "decoder_prompts": [prompt]}  # a list of one token would become floats
        found, _ = self._heard(lambda: self._pipeline.model._traverse_inference(asked))  # noqa: SLF001 - the rule itself
        if self._prompt_type == "prev_output":
            said = self._pipeline(dict(item))["labels"]
            answer = str(said[0] if isinstance(said, list) else said).strip()
            if self._labels[answer] != max(found, key=found.__getitem__):
                raise RuntimeError(f"the pipeline said {said!r}, its model's scores are {found}")
        return found

    def tokens(self, picture: Path, statement: str, premise: str) -> list[int]:
        """The pipeline's token ids of a prompt, begin and end included."""
        ids: list[int] = self._sample(_item_of(picture, statement, premise))["source"].tolist()
        return ids

    def find_special_tokens(self, *, enabled: bool) -> None:
        """Turn the tokeniser's search for spelled special tokens on or off; it is on at first."""
        self._pipeline.preprocessor.preprocess.tokenizer.split_special_tokens = not enabled

    def _sample(self, item: Mapping[str, str]) -> Mapping[str, Tensor]:
        """The pipeline's preprocessed item, before it is batched."""
        sample: Mapping[str, Tensor] = self._pipeline.preprocessor.preprocess(dict(item))
        return sample


def _item_of(picture: Path, statement: str, premise: str) -> dict[str, str]:
    """An item in the pipeline's terms: a file, so that the picture is handled as in production."""
    return {"image": str(picture.resolve()), "text": statement, **({"text2": premise} if premise else {})}
