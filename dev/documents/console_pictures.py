"""`make console-pictures`: runs the demo, and photographs its console in a real Chromium for the documents.

Two pictures in docs/pictures: the overview while a revision is on trial, and the page of a revision that was refused.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from dev.documents.blocks import ROOT
from dev.documents.record import Caller, Session
from dev.documents.sandbox import Sandbox, demo_stack
from examples.shapes.worsen import worsen_directory

PICTURES = ROOT / "docs" / "pictures"
OVERVIEW, REFUSED = PICTURES / "console-overview.png", PICTURES / "console-update.png"
SIZES = {OVERVIEW: (1180, 860), REFUSED: (1180, 1270)}
BEFORE_SECONDS, ON_TRIAL_SECONDS = 45.0, 10.0  # of calls, so that the lines of the last hour have something to show


def photograph(sandbox: Sandbox, page: Page, folder: Path) -> None:
    """Play an update and a refusal, and take both pictures.

    Args:
        sandbox: the running demo.
        page: a window of the browser.
        folder: for the revision that is published.
    """
    session, caller = Session(sandbox), Caller(f"127.0.0.1:{sandbox.ports['50051']}")
    page.goto("/")  # the console keeps an hour of what it has seen
    caller.start()
    try:
        time.sleep(BEFORE_SECONDS)
        session.run("hotslot hub add examples/shapes/v1.1.0 v1.1.0")
        session.wait_for("hotslot updates status --model shapes", "observing")
        time.sleep(ON_TRIAL_SECONDS)
        take(page, "/", OVERVIEW)
        session.wait_for("hotslot updates history --model shapes", "committed")
    finally:
        caller.stop()
    worsen_directory(ROOT / "examples/shapes/v1.1.0", folder / "worse")
    session.run(f"hotslot hub add {folder / 'worse'} v1.2.0 --model shapes")
    session.wait_for("hotslot updates history --model shapes", "refused")
    page.goto("/updates?model=shapes")
    take(page, page.locator("tbody tr a").first.get_attribute("href") or "", REFUSED)


def take(page: Page, place: str, into: Path) -> None:
    """One picture of the top of a page."""
    width, height = SIZES[into]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(place)
    page.wait_for_timeout(1500)  # the live parts
    page.screenshot(path=into)


def main() -> int:
    """Photograph; 1 if there is no Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("there is no Chromium; `make tools-console` installs one", file=sys.stderr)
        return 1
    os.environ["no_proxy"] = "127.0.0.1"
    with (
        tempfile.TemporaryDirectory(prefix="hotslot-pictures-") as name,
        demo_stack(Path(name) / "demo") as stack,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        url = f"http://127.0.0.1:{stack.ports['50080']}"
        photograph(stack, browser.new_page(base_url=url, locale="en-GB", timezone_id="UTC"), Path(name))
        browser.close()
    version = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"{OVERVIEW.name} and {REFUSED.name} are of this build, by {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
