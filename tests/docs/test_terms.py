"""Names are written as their owners write them, and the project's replaced words do not come back in its pages."""

import re
from pathlib import Path

import pytest

from console.reasons import ADVICE, CHECKS, EVENTS, REASONS
from console.words import CHINESE
from dev.documents.blocks import ROOT, list_pages, strip_blocks

# Wrong spelling → right one; in prose, outside code, links and paths.
TERMS = {
    "grpc|GRPC|Grpc": "gRPC",
    "Modelscope|Model Scope": "ModelScope",  # in lower case it is the name of a package
    "Hotslot|HotSlot": "hotslot",
    "kubernetes|K8s": "Kubernetes",
    "prometheus": "Prometheus",
    "Github|github": "GitHub",
    "Pytorch|pytorch": "PyTorch",
    "json": "JSON",
    "[Rr]oll-back": "rollback",
    "in trial": "on trial",
    "watch dog": "watchdog",
    "golden-set": "golden set",
}
# Chinese words that were replaced → what the pages and the console say now.
CHINESE_TERMS = {
    "试用": "试运行",  # trial
    "黄金集": "基准集",  # golden set; at its first mention 基准测试集, with the English word
    "没有应答": "无响应",
    "待命": "备用",  # standby
    "在隔离中": "已被隔离",
    "放宽": "调大",  # of a deadline
    "步骤过多": "更新步骤数超限",
}
_CODE = re.compile(r"`[^`\n]*`|\]\([^)]*\)|<[^>]*>|https?://\S+|\"[^\"\n]*\"")


def find_wrong(text: str) -> list[str]:
    """The words of a page that are written otherwise than elsewhere."""
    prose = _CODE.sub(" ", strip_blocks(text))
    return [
        f"{word}: write {right}"
        for wrong, right in TERMS.items()
        for word in re.findall(rf"(?<![\w./-])({wrong})(?![\w./-])", prose)
    ]


@pytest.mark.parametrize("page", list_pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_terms_are_those_of_the_word_list(page: Path) -> None:
    """As docs/explanation/glossary.md and their owners write them."""
    assert find_wrong(page.read_text("utf-8")) == []


def find_wrong_chinese(text: str) -> list[str]:
    """The Chinese words that were replaced."""
    return [f"{wrong}: write {right}" for wrong, right in CHINESE_TERMS.items() if wrong in text]


def test_chinese_terms_are_those_of_the_word_list() -> None:
    """In the pages and in the console alike."""
    pages = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
    texts = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in pages}
    texts["the console"] = "\n".join(
        word for table in (CHINESE, REASONS, ADVICE, EVENTS, CHECKS) for word in table.values()
    )
    assert {place: found for place, text in texts.items() if (found := find_wrong_chinese(text))} == {}


def test_a_wrong_term_is_found() -> None:
    """In prose only: commands and links are as they are."""
    assert find_wrong("Hotslot on kubernetes, `grpc` and [x](github.com)\n") == [
        "Hotslot: write hotslot",
        "kubernetes: write Kubernetes",
    ]
    assert find_wrong_chinese("黄金集检验") == ["黄金集: write 基准集"]
