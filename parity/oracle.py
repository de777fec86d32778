"""The stock pipeline of a published folder, with its ear tapped: it returns the winner, this all three probabilities.

Runs in the parity environment only.
"""

import importlib.metadata
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from parity import compat  # noqa: F401 - makes modelscope importable

# isort: split
from modelscope.models.multi_modal import ofa_for_all_tasks
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

VERSIONED = ("modelscope", "torch", "transformers", "tokenizers", "torchvision", "pillow", "numpy")


def versions() -> dict[str, str]:
    """What the oracle is made of."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


class _TappedFunctions:
    """Stands before torch.nn.functional in the pipeline's own module and remembers its last softmax."""

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
        """Load the folder and make sure that the pipeline holds the folder's weights.

        Raises:
            RuntimeError: it initialised some of them anew.
        """
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        self._pipeline: Any = pipeline(Tasks.visual_entailment, model=str(folder.resolve()), device="cpu")
        self._tap = _TappedFunctions()
        ofa_for_all_tasks.F = self._tap
        settings = self._pipeline.model.cfg.model
        self._traverses = settings.gen_type == "traverse" and settings.get("prompt_type", "none") != "none"

    def check_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold what the pipeline loaded against what the files hold.

        Raises:
            RuntimeError: they differ.
        """
        loaded = self._pipeline.model.model.state_dict()
        wrong = [name for name in tensors if not torch.equal(tensors[name].float(), loaded[name].float())]
        tables = ("_rp_bucket", "image_position_idx", "num_batches_tracked")
        wrong += [name for name in loaded if name not in tensors and not name.endswith(tables)]
        if wrong:
            raise RuntimeError(f"the pipeline did not load {', '.join(wrong[:5])}")

    def ask(self, picture: Path, statement: str, premise: str) -> dict[str, float]:
        """Probability of each answer."""
        item = _item_of(picture, statement, premise)
        if not self._traverses:
            return self._ask_model(item)
        self._tap.heard = None
        result = self._pipeline(item)
        heard = self._tap.heard
        if heard is None:
            raise RuntimeError("the pipeline came to no softmax")
        names: dict[int, str] = self._pipeline.model.index2ans
        found = {names[index]: float(value) for index, value in enumerate(heard[0])}
        if result["labels"] != max(found, key=found.__getitem__) or abs(result["scores"] - max(found.values())) > 0:
            raise RuntimeError("the tap heard something else than the pipeline said")
        return found

    def _ask_model(self, item: Mapping[str, str]) -> dict[str, float]:
        """Score the answers by the stock model itself.

        A pipeline that generates says 1.0 of every answer, and one whose decoder is to begin with
        nothing but the begin token ("prompt_type": "none") fails on every item.

        Raises:
            RuntimeError: a pipeline that does answer says something else.
        """
        task = self._pipeline.model
        sample = self._sample(item)
        source, prompt = sample["source"][None], sample["decoder_prompt"][None]
        inputs = {"patch_images": sample["patch_image"][None], "patch_masks": sample["patch_mask"]}
        with torch.no_grad():
            logits = task.model(input_ids=source, **inputs, decoder_input_ids=prompt).logits[0, -1]
        labels = list(task.ans2label_dict)
        tokens = [task.tokenizer(f" {label}", add_special_tokens=False).input_ids[0] for label in labels]
        found = dict(zip(labels, F.softmax(logits[tokens], dim=-1).tolist(), strict=True))
        if len(prompt[0]) > 1:
            said = self._pipeline(dict(item))["labels"]
            label = str(said[0] if isinstance(said, list) else said).strip()
            if label != max(found, key=found.__getitem__):
                raise RuntimeError(f"the pipeline said {said!r}, its model's scores are {found}")
        return found

    def tokens(self, picture: Path, statement: str, premise: str) -> list[int]:
        """Ids that the pipeline makes of a prompt, begin and end included."""
        ids: list[int] = self._sample(_item_of(picture, statement, premise))["source"].tolist()
        return ids

    def _sample(self, item: Mapping[str, str]) -> Mapping[str, Tensor]:
        """What the pipeline's preprocessor makes of an item, before it becomes a batch of one."""
        sample: Mapping[str, Tensor] = self._pipeline.preprocessor.preprocess(dict(item))
        return sample


def _item_of(picture: Path, statement: str, premise: str) -> dict[str, str]:
    """An item in the pipeline's terms: a file, so that it treats a picture as it does in life."""
    return {"image": str(picture.resolve()), "text": statement, **({"text2": premise} if premise else {})}
