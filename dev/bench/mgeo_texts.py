"""The addresses of `make bench-mgeo`, and the operations of the model for one. Pure."""

import random
from collections.abc import Mapping

from inference.runner.engines.mgeo.config import EngineConfig

LENGTHS: Mapping[str, tuple[int, ...]] = {
    "short": (12,),
    "usual": (25,),
    "long": (100,),
    "mixed": (12, 25, 25, 25, 40, 100),
}
_CHARACTERS = "浙江省杭州市余杭区五常街道文一西路九百六十号楼幢单元室阿里巴园上海北京广东深圳南山科技二三四七八"


def make_texts(name: str, count: int) -> list[str]:
    """Made-up addresses of the lengths of a kind; every character is a token."""
    chance = random.Random(name)
    lengths = LENGTHS[name]
    return ["".join(chance.choices(_CHARACTERS, k=lengths[number % len(lengths)])) for number in range(count)]


def count_operations(config: EngineConfig, characters: int) -> int:
    """Floating-point operations of an address, without padding; a multiplication and an addition count as two."""
    tokens, width = characters + 2, config.width
    dense = 2 * tokens * (4 * width**2 + 2 * width * config.ffn)
    return config.layers * (dense + 4 * tokens**2 * width) + 2 * tokens * width * len(config.labels)
