"""Import this before modelscope: stand-ins for what its OFA package imports and never uses for pictures.

Audio and video readers, and sibling models with their own dependencies.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import NoReturn


class Unsupported:
    """Stands for a class that nobody should make."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        _refuse()


def _refuse() -> NoReturn:
    raise RuntimeError("this part of modelscope is left out here")


def _stand_in(name: str, *classes: str) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for one in classes:
        setattr(module, one, Unsupported)
    sys.modules[name] = module


for _name in ("torchaudio", "decord"):
    if importlib.util.find_spec(_name) is None:
        _stand_in(_name, "VideoReader")
_stand_in("modelscope.preprocessors.ofa.asr", "OfaASRPreprocessor")
_stand_in("modelscope.preprocessors.ofa.ocr_recognition", "OfaOcrRecognitionPreprocessor")
_stand_in("modelscope.preprocessors.ofa.text2sql", "OfaTextToSqlPreprocessor")
_stand_in("modelscope.models.multi_modal.ofa.modeling_mmspeech", "MMSpeechModel")
_stand_in("modelscope.models.multi_modal.ofa.vit", "vit_base", "vit_huge", "vit_large", "vit_large_336")
