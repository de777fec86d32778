"""Addresses and odd texts to compare with, and the vocabulary of the generated models.

All are written out or drawn from a seed, so that no version changes them.
"""

import random
from collections.abc import Sequence

from dev.parity.odd_texts import odd_texts

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_IDEOGRAPHS = (
    "浙江省杭州市余杭区五常街道文一西路九百六十号楼幢单元室阿里巴园上海北京广东深圳南山科技二三四七八"
    "县镇乡村组社弄巷里大厦广场商城中心小区花苑新农工业学校医院银行店铺门面旁对交叉口附近层座栋栏层内"
    "苏锡常无锡宁波温绍兴嘉湖金华衢舟台丽水合肥福建厦泉漳济青岛烟武汉长沙成都重庆西安天津沈阳哈尔滨"
)
_PUNCTUATION = "-#,.()、,。()【】《》:·~/&+*" + "\uff0c\uff08\uff09\uff1a\uff0d\uff03"
_FULL_WIDTH = "".join(map(chr, (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF24), *range(0xFF41, 0xFF44))))
_WORDS = ("building", "plaza", "soho", "mall", "a", "b", "kfc", "no", "road", "the", "caf")
_PIECES = ("##ing", "##er", "##s", "##e", "##mall", "##zoo")
_EXTRA = ("é", "İ", "ß", "ก", "д", "ж", "\u0430", "😀", "𠀀", "€", "²", "①", "Ⅷ", "가", "か", "カ")


def vocabulary() -> list[str]:
    """The tokens of the generated models. Some characters of the texts are missing, so that unknown words occur."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    tokens = [
        *SPECIAL,
        *_IDEOGRAPHS,
        *_PUNCTUATION,
        *_FULL_WIDTH,
        *characters,
        *(f"##{one}" for one in characters),
        *capitals[:13],
        *_WORDS,
        *_PIECES,
        *_EXTRA,
    ]
    return list(dict.fromkeys(tokens))


_PROVINCES = ("浙江省", "浙江", "广东省", "上海市", "北京", "江苏省", "新疆维吾尔自治区", "", "")
_CITIES = ("杭州市", "宁波", "深圳市", "南京市", "无锡市", "乌鲁木齐市", "", "")
_DISTRICTS = ("余杭区", "西湖区", "南山区", "江宁县", "滨江", "", "")
_TOWNS = ("五常街道", "新桥镇", "中村乡", "", "", "")
_ROADS = ("文一西路", "科技园中路", "世纪大道", "人民路", "G15沈海高速", "", "")
_NUMBERS = (
    "969号",
    "9-6号",
    "A座3栋",
    "12#",
    "100号",
    "1幢2单元303室",
    "\uff11\uff12号\uff21座",
    "地下1层B102",
    "九百六十号",
    "",
)
_PLACES = ("阿里巴巴西溪园区", "SOHO广场", "KFC(大学城店)", "Building 7", "大学第三医院", "café é", "万达mall", "", "")
_NOISE = ("", "", "", "", "收货地址:", "麻烦送到", "电话13800000000", "【急】", "~~", "谢谢!😀", "(放门口)", "\u3000")
_JOINTS = ("", "", "", "", " ", ",", "-", "\u3000", "/")


def addresses(count: int, seed: int = 19) -> list[str]:
    """Made-up addresses of all shapes."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [chance.choice(row) for row in (_PROVINCES, _CITIES, _DISTRICTS, _TOWNS, _ROADS, _NUMBERS, _PLACES)]
        if chance.random() < 0.15:
            chance.shuffle(parts)
        joint = chance.choice(_JOINTS)
        text = chance.choice(_NOISE) + joint.join(part for part in parts if part) + chance.choice(_NOISE)
        if chance.random() < 0.1:
            text = text * chance.randrange(2, 6)
        if text.strip():
            found[text] = None
    return list(found)


_ALPHABETS: tuple[Sequence[str], ...] = (
    (*_IDEOGRAPHS, *_PUNCTUATION, *" 0123abc"),
    (*_IDEOGRAPHS[:30], *_FULL_WIDTH, *"\u3000\xa0 \t\n"),
    (*_EXTRA, *"abc 1浙e\u0301\u0308\u200b\u200d\ufeff\u00ad\ufffd\0\x7f"),
    (*_IDEOGRAPHS[:40], *"𠀀𪚥😀👍🏽\u0301\ufe0f龘魑\U0010fffd\ue000"),
    (*_WORDS, *_PIECES, " ", "-", "浙", "##", "[UNK]", "[SEP]", "[CLS]"),
)


def all_texts(count: int = 5600) -> list[str]:
    """Odd texts of all kinds, each once; addresses first."""
    chance = random.Random(20)
    texts = [*addresses(1200), *(text for text in odd_texts() if text)]
    while len(texts) < count:
        alphabet = _ALPHABETS[len(texts) % len(_ALPHABETS)]
        texts.append("".join(chance.choices(alphabet, k=chance.randrange(1, 40))))
    return list(dict.fromkeys(texts))
