"""The built site, served on this machine alone, and one browser that looks at it."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import sync_playwright

from documents import ROOT

BUILT = ROOT / "site"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def built():
    if not (BUILT / "index.html").exists():
        pytest.fail("there is no site to look at: type `make docs`")
    return BUILT


@pytest.fixture(scope="session")
def address(built):
    handler = functools.partial(Quiet, directory=str(built))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(
            "these tests look at the pages in a browser, and found none of "
            f"{', '.join(BROWSERS)}. Install one: apt-get install "
            "--no-install-recommends chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


class Look:
    """A page as one reader sees it, and what it did that it should not."""

    def __init__(self, browser, address, width):
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.wrong = []
        self.page.on("request", self._on_request)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda r: self.wrong.append(f"failed: {r.url}"))

    def _on_request(self, request):
        if not request.url.startswith((f"{self.address}/", "data:", "blob:")):
            self.wrong.append(f"asks another host: {request.url}")

    def _on_console(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def open(self, path):
        self.wrong.clear()
        self.page.goto(f"{self.address}/{path}", wait_until="load")
        self.page.wait_for_function("() => document.fonts.status === 'loaded'")
        return self.page

    def darken(self):
        """Clicks on the moon, and sees to it that the next page is light again."""
        self.page.locator("label[title='Switch to dark mode']").click()
        self.page.locator("body[data-md-color-scheme=slate]").wait_for()
        self.page.evaluate("localStorage.clear()")


@pytest.fixture(scope="session", params=[1280, 390])
def look(request, browser, address):
    look = Look(browser, address, request.param)
    yield look
    look.context.close()


@pytest.fixture(scope="session")
def desk(browser, address):
    look = Look(browser, address, 1280)
    yield look
    look.context.close()
