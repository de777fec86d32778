"""mkdocs.yml: the site's navigation is the index, docs/README.md, section by section."""

import re

from dev.documents.blocks import ROOT

CONFIG = ROOT / "mkdocs.yml"
_BEGIN = "nav: # made of docs/README.md by `python -m dev.documents.generated`\n"
_SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_GROUP = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+\.md)\)")


def render() -> str:
    """The configuration with the navigation at its end."""
    head = CONFIG.read_text("utf-8").partition(_BEGIN)[0]
    text, seen = "  - Overview: README.md\n", {"README.md"}
    for title, body in _SECTION.findall((ROOT / "docs/README.md").read_text("utf-8")):
        text += f"  - {title}:\n"
        groups = _GROUP.split(body)  # text before the first group, then name and text of each
        for name, part in [("", groups[0]), *zip(groups[1::2], groups[2::2], strict=True)]:
            links = [(label, path) for label, path in _LINK.findall(part) if path not in seen]
            seen.update(path for _, path in links)
            if name and links:
                text += f"    - {name}:\n"
            text += "".join(f"{'      ' if name else '    '}- {_quote(label)}: {path}\n" for label, path in links)
    return head + _BEGIN + text


def _quote(label: str) -> str:
    plain = label.replace("`", "").replace('"', "")
    return f'"{plain[:1].upper()}{plain[1:]}"'
