"""The console in a real Chromium, over a real stack with both demo models: every flow of an operator, in order.

`make test-console` runs it. Screenshots of all pages in two widths and both themes go to `.bench/console/`.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from common.tokens import make_entry, make_token, write_tokens
from dev.harness.process import ROOT
from dev.harness.waiting import eventually
from examples.shapes.worsen import worsen_directory

PICTURE = ROOT / "examples" / "shapes" / "pictures" / "two-red-circles.png"
ADDRESS = "浙江省杭州市余杭区五常街道文一西路969号"
SHOTS = ROOT / ".bench" / "console"
AXE = ROOT / ".tools" / "console" / "package" / "axe.min.js"
WIDTHS = {"wide": 1280, "phone": 390}
UPDATE_MS = 240_000.0
ANSWER_MS = 60_000.0  # a busy machine is slow, and nothing here measures speed
# No limit of cost: what else the machine does is not measured here.
SETTINGS = """
state_dir = "{folder}/state"
[[models]]
name = "shapes"
task = "visual-entailment"
[[models]]
name = "addresses"
task = "token-classification"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[runner]
threads = 1
[console]
enabled = true
port = 0
operate = true
tokens_file = "{folder}/tokens"
[updater]
metrics_port = -1
[updater.models.shapes]
hub_folder = "{folder}/hub"
golden = "{folder}/golden"
poll_seconds = 1
gate = {{ max_cost_factor = 100 }}
observe = {{ window_seconds = 3, max_seconds = 60, keep_warm_seconds = 600, max_cost_factor = 100 }}
[updater.models.addresses]
hub_folder = "{folder}/hub"
golden = "{root}/examples/addresses/golden"
poll_seconds = 1
policy = {{ mode = "approve" }}
gate = {{ max_cost_factor = 100 }}
observe = {{ window_seconds = 3, max_seconds = 60, keep_warm_seconds = 5 }}
"""


@dataclass
class Site:
    """A running stack with its console."""

    folder: Path
    token: str
    url: str = ""
    pid: int = 0  # of `hotslot serve`
    address: str = ""

    def command(self, *words: str) -> str:
        """Run `hotslot` with the stack's settings."""
        environment = {**os.environ, "HOTSLOT_CONFIG": str(self.folder / "hotslot.toml")}
        command = [sys.executable, "-m", "cli.main", *words]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def publish(self, model: str, folder: Path, revision: str) -> None:
        """Publish a revision in the hub's folder."""
        self.command("hub", "add", str(folder), revision, "--model", model, "--hub", str(self.folder / "hub"))

    def find(self, module: str) -> psutil.Process:
        """The process of the stack with this word on its command line."""
        children = psutil.Process(self.pid).children(recursive=True)
        return next(one for one in children if module in one.cmdline())


def find_free_port() -> int:
    """A port that nobody uses now: the console reads the server's from the settings."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both models at v1.0.0, the hub without a newer one, wang's token."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "hotslot.toml").write_text(SETTINGS.format(folder=folder, root=ROOT, port=find_free_port()))
    shutil.copytree(ROOT / "examples" / "shapes" / "golden", folder / "golden")
    token = make_token()
    write_tokens(folder / "tokens", added=make_entry("wang", token, ""))
    environment = {**os.environ, "HOTSLOT_CONFIG": str(folder / "hotslot.toml")}
    log = (folder / "log").open("w")
    found = Site(folder, token)
    settings = (folder / "hotslot.toml").read_text()
    # Without the golden sets an import does not judge the model, which takes a minute on a busy machine.
    (folder / "hotslot.toml").write_text(re.sub(r"(?m)^golden = .*\n", "", settings))
    for model in ("shapes", "addresses"):
        first = str(ROOT / "examples" / model / "v1.0.0")
        found.command("bundle", "import", first, "--model", model)
        found.publish(model, Path(first), "v1.0.0")
    (folder / "hotslot.toml").write_text(settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve"], env=environment, cwd=ROOT, stdout=log, stderr=log, text=True
    )
    found.pid = process.pid
    try:

        def is_up() -> bool:
            text = (folder / "log").read_text()
            ready = re.search(r'"event": "console_ready", "url": "([^"]+)"', text)
            serving = [f'"service": "{name}", "serving": true' in text for name in ("shapes", "addresses")]
            found.url = ready[1].rstrip("/") if ready else ""
            return bool(ready) and all(serving)

        eventually(is_up, 240.0)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, chromium: Browser) -> Iterator[Page]:
    """A new window; a page that breaks its own rules (CSP, a script error) fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", base_url=site.url)
    context.set_default_timeout(ANSWER_MS)
    expect.set_options(timeout=ANSWER_MS)
    window = context.new_page()
    broken: list[str] = []
    window.on("pageerror", lambda error: broken.append(str(error)))
    window.on("console", lambda line: broken.append(line.text) if "Content Security Policy" in line.text else None)
    yield window
    context.close()
    assert broken == []


def log_in(page: Page, site: Site) -> None:
    """As wang."""
    page.goto("/login")
    page.fill("#token", site.token)
    page.click("main button")
    expect(page.locator(".session")).to_contain_text("wang")


def confirm(page: Page, revision: str, reason: str) -> None:
    """Fill in the form of a command, and send it."""
    page.fill("#reason", reason)
    if revision:
        page.fill("#confirm", revision)
    page.click("main form button")


def test_a_picture_is_dropped_in_and_judged(page: Page) -> None:
    """By the file chooser; three bars for each statement, and who answered."""
    page.goto("/")
    page.locator("section.model", has_text="shapes").get_by_role("link", name="Try").click()
    page.set_input_files("#picture", PICTURE)
    page.fill("#texts", "there are two red circles\nthere is a star")
    page.click("#try button")
    expect(page.locator(".answer h2")).to_contain_text("v1.0.0")
    chosen = page.locator("tr.chosen").evaluate_all("rows => rows.map(row => row.className.split(' ')[0])")
    shown = page.locator("#preview").evaluate("picture => picture.naturalWidth > 0")
    assert (chosen[0], len(chosen), shown) == ("yes", 2, True)


def test_a_picture_is_pasted(page: Page) -> None:
    """As from another program's clipboard."""
    page.goto("/try/shapes")
    page.evaluate(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'pasted.png', {type: 'image/png'}));
            document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true}));
        }""",
        list(PICTURE.read_bytes()),
    )
    page.fill("#texts", "there are two red circles")
    page.click("#try button")
    expect(page.locator("tr.chosen")).to_contain_text("yes")


def test_an_address_is_cut_into_coloured_parts(page: Page) -> None:
    """Each with its kind."""
    page.goto("/try/addresses")
    page.fill("#texts", ADDRESS)
    page.click("#try button")
    expect(page.locator("mark").first).to_contain_text("浙江省")
    kinds = page.locator("mark small").all_inner_texts()
    assert kinds[:3] == ["prov", "city", "district"]


def test_the_pages_work_without_javascript(site: Site, chromium: Browser) -> None:
    """A picture is kept between two questions."""
    context = chromium.new_context(java_script_enabled=False, base_url=site.url)
    page = context.new_page()
    page.goto("/try/shapes")
    page.set_input_files("#picture", PICTURE)
    page.fill("#texts", "there are two red circles")
    page.click("#try button")
    page.fill("#texts", "there is a star")
    page.click("#try button")
    statement = page.locator("h3.statement").inner_text()
    context.close()
    assert statement == "there is a star"


def test_a_wrong_token_is_told(page: Page) -> None:
    """And nobody is logged in."""
    page.goto("/login")
    page.fill("#token", "hotslot_wrong")
    page.click("main button")
    expect(page.get_by_role("alert")).to_contain_text("not known")
    expect(page.locator(".session")).to_contain_text("Log in")


def test_a_golden_item_is_added_from_an_answer(page: Page, site: Site) -> None:
    """What is tried, with the answer that should have come."""
    log_in(page, site)
    page.goto("/try/shapes")
    page.set_input_files("#picture", PICTURE)
    page.fill("#texts", "there are two red circles")
    page.click("#try button")
    page.get_by_text("add it to the golden set").click()
    page.locator("select[name=expected]").select_option("yes")
    page.locator("input[name=name]").fill("two-red-circles")
    page.get_by_role("button", name="Add to the golden set").click()
    expect(page.locator("#added")).to_contain_text("two-red-circles")
    lines = (site.folder / "golden" / "golden.jsonl").read_text().splitlines()
    added = json.loads(lines[-1])
    picture = (site.folder / "golden" / added["image"]).read_bytes()
    assert (added["item"], added["expected"], picture) == ("two-red-circles", ["yes"], PICTURE.read_bytes())


def test_a_check_of_the_golden_set_is_watched(page: Page) -> None:
    """Item by item, to its end."""
    page.goto("/golden/shapes/check")
    expect(page.locator("progress")).to_be_visible()
    expect(page.get_by_text("201 / 201")).to_be_visible(timeout=UPDATE_MS)


def test_a_worse_revision_is_refused_with_its_pictures(page: Page, site: Site) -> None:
    """Watched as it happens; the evidence page shows what it got wrong."""
    worse = site.folder / "worse"
    worsen_directory(ROOT / "examples" / "shapes" / "v1.0.0", worse)
    page.goto("/")
    site.publish("shapes", worse, "v1.0.9")
    expect(page.locator("section.model", has_text="shapes").locator(".update")).to_contain_text(
        "v1.0.9", timeout=UPDATE_MS
    )
    expect(page.locator("section.model", has_text="shapes").locator(".update")).to_contain_text(
        "quarantine", timeout=UPDATE_MS
    )
    # The page of past updates is no live one: it is opened when the update is over.
    expect(page.locator("section.model", has_text="shapes").locator(".update")).to_contain_text(
        "none under way", timeout=UPDATE_MS
    )
    page.goto("/updates?model=shapes")
    expect(page.locator("tbody tr").first).to_contain_text("REFUSED")
    page.locator("tbody tr a").first.click()
    expect(page.locator("main")).to_contain_text("✗ fails")
    page.get_by_role("link", name=re.compile("now wrong")).click()
    picture = page.locator(".differences img").first
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    page.wait_for_function("() => document.querySelector('.differences img').naturalWidth > 0")
    assert page.locator(".differences li").count() > 0
    picture.click()
    expect(page.locator("dialog.picture img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog.picture")).to_have_count(0)


def test_a_better_revision_is_watched_to_its_commit(page: Page, site: Site) -> None:
    """The slots change places under the eyes of who watches, without a reload."""
    page.goto("/")
    site.publish("shapes", ROOT / "examples" / "shapes" / "v1.1.0", "v1.1.0")
    model = page.locator("section.model", has_text="shapes")
    expect(model.locator(".stages li.now")).to_be_visible(timeout=UPDATE_MS)
    expect(model.locator(".role-active .revision, .role-trial .revision")).to_contain_text("v1.1.0", timeout=UPDATE_MS)
    expect(model.locator(".update")).to_contain_text("Committed v1.1.0", timeout=UPDATE_MS)


def test_both_slots_answer_beside_each_other(page: Page) -> None:
    """The previous revision is still warm."""
    page.goto("/try/shapes")
    page.set_input_files("#picture", PICTURE)
    page.fill("#texts", "there are two red circles")
    page.click("#try button")
    expect(page.locator(".answer h2")).to_have_count(2)
    assert [text.split()[0] for text in page.locator(".answer h2").all_inner_texts()] == ["v1.1.0", "v1.0.0"]


def test_a_held_revision_is_approved(page: Page, site: Site) -> None:
    """In mode `approve`; the history says who and why."""
    site.publish("addresses", ROOT / "examples" / "addresses" / "v1.1.0", "v1.1.0")
    log_in(page, site)
    held = page.locator("section.model", has_text="addresses").locator(".badge.stage-held")
    expect(held).to_be_visible(timeout=UPDATE_MS)
    page.locator("section.model", has_text="addresses").get_by_role("link", name="evidence").click()
    page.get_by_role("link", name="approve").click()
    confirm(page, "v1.1.0", "looked at the differences")
    page.goto("/")
    expect(page.locator("section.model", has_text="addresses").locator(".update")).to_contain_text(
        "Committed v1.1.0", timeout=UPDATE_MS
    )
    page.goto("/updates?model=addresses")
    page.locator("tbody tr a").first.click()
    expect(page.locator(".events")).to_contain_text("by wang: looked at the differences")


def test_a_committed_revision_is_rolled_back(page: Page, site: Site) -> None:
    """Only with its name typed, and a reason."""
    log_in(page, site)
    page.locator("section.model", has_text="shapes").get_by_role("link", name="Roll back").click()
    confirm(page, "v1.1", "complaints")
    expect(page.get_by_role("alert")).to_contain_text("not the revision's name")
    confirm(page, "v1.1.0", "complaints")
    page.goto("/")
    model = page.locator("section.model", has_text="shapes")
    expect(model.locator(".update")).to_contain_text("Committed v1.0.0", timeout=UPDATE_MS)
    expect(model.locator(".update")).to_contain_text("paused")


def test_a_lost_server_is_told_and_found_again(page: Page, site: Site) -> None:
    """The page stays, says so, and goes on by itself."""
    page.goto("/")
    expect(page.locator(".layers")).to_contain_text("shapes")
    site.find("inference.server.main").kill()
    expect(page.locator(".alarm")).to_be_visible(timeout=UPDATE_MS)
    expect(page.locator(".layers")).to_contain_text("shapes", timeout=UPDATE_MS)


def test_the_console_dies_alone(page: Page, site: Site) -> None:
    """It is started again, and no other process notices."""
    before = site.find("inference.server.main").pid
    text = (site.folder / "log").read_text().count("console_ready")
    site.find("console").kill()
    eventually(lambda: (site.folder / "log").read_text().count("console_ready") > text, 60.0)
    assert site.find("inference.server.main").pid == before
    del page


PAGES = ("/", "/try/shapes", "/try/addresses", "/updates", "/golden/shapes", "/golden/shapes/check", "/login", "UPDATE")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
def test_pages_are_accessible_and_fit(site: Site, chromium: Browser, width: str, theme: str) -> None:
    """Axe finds nothing serious; no page is wider than its window; a screenshot of each is kept."""
    latest = re.findall(r'"url": "([^"]+)"', (site.folder / "log").read_text())[-1].rstrip("/")
    SHOTS.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(
        viewport={"width": WIDTHS[width], "height": 900}, color_scheme=theme, base_url=latest, bypass_csp=True
    )
    page = context.new_page()
    found: dict[str, object] = {}
    for path in PAGES:
        target = path
        if path == "UPDATE":
            page.goto("/updates?model=shapes")
            target = page.locator("tbody tr a").last.get_attribute("href") or ""
        page.goto(target)
        page.evaluate("() => document.querySelectorAll('img[loading=lazy]').forEach(one => { one.loading = 'eager'; })")
        page.wait_for_timeout(400)
        name = path.strip("/").replace("/", "-").lower() or "overview"
        page.screenshot(path=SHOTS / f"{name}-{width}-{theme}.png", full_page=True)
        page.add_script_tag(path=AXE)
        rows = page.evaluate("async () => (await axe.run()).violations")
        serious = [
            row["id"] + ": " + row["nodes"][0]["html"] for row in rows if row["impact"] in ("serious", "critical")
        ]
        overflow = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if serious or overflow > 0:
            found[path] = (serious, overflow)
    context.close()
    assert found == {}
