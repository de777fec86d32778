"""Writes the pages that are made from the code: `python -m dev.documents.generated`; --check only looks."""

import sys
from collections.abc import Callable, Mapping

from dev.documents import (
    cli_reference,
    decisions_index,
    pictures,
    proto_reference,
    recording,
    site_nav,
    state_reference,
    swap,
    troubleshooting,
    troubleshooting_zh,
)
from dev.documents.blocks import ROOT

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/api.md": proto_reference.render,
    "docs/cli.md": cli_reference.render,
    "docs/exit-codes.md": state_reference.render_codes,
    "docs/explanation/decisions/README.md": decisions_index.render,
    "docs/pictures/predict.svg": pictures.draw_predict,
    "docs/pictures/processes.svg": pictures.draw_processes,
    "docs/pictures/recording.svg": recording.draw,
    "docs/pictures/state-folder.svg": pictures.draw_state_folder,
    "docs/pictures/swap.svg": swap.draw,
    "docs/pictures/update.svg": pictures.draw_update,
    "docs/state-folder.md": state_reference.render_state,
    "docs/troubleshooting.md": troubleshooting.render,
    "docs/zh/troubleshooting.md": troubleshooting_zh.render,
    "mkdocs.yml": site_nav.render,
}


def list_stale() -> list[str]:
    """The pages that are not what the code says."""
    return [
        name
        for name, render in PAGES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text("utf-8") != render()
    ]


def main() -> int:
    """Write what is stale; with --check the exit code is 1 if something is."""
    stale = list_stale()
    if "--check" in sys.argv[1:]:
        print("\n".join(stale))
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(PAGES[name](), "utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
