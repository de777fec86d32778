"""Names are written as their owners write them, and the project's replaced words do not come back in its pages."""

import re
from pathlib import Path

import pytest

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


def test_a_wrong_term_is_found() -> None:
    """In prose only: commands and links are as they are."""
    assert find_wrong("Hotslot on kubernetes, `grpc` and [x](github.com)\n") == [
        "Hotslot: write hotslot",
        "kubernetes: write Kubernetes",
    ]
