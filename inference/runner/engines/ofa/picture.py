"""Decodes a picture in this process: for programs that use an engine without a runner."""

import numpy as np

from common.errors import InputRefused
from inference.runner.engines.base import PictureFormat, Pixels
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.file import FIELD, PictureRefused


def decode(content: bytes, pictures: PictureFormat) -> Pixels:
    """Decode a picture.

    Raises:
        InputRefused: IMAGE_UNREADABLE, IMAGE_TOO_LARGE or IMAGE_TOO_COSTLY.
    """
    try:
        plan = plan_picture(content, pictures.side, pictures.options)
        return np.array(render(plan, pictures.options.rendering), dtype=np.uint8)
    except PictureRefused as refusal:
        raise InputRefused(str(refusal), reason=refusal.reason, field=FIELD) from refusal
