"""Chromium, and Alvo's API and page over a year of windows."""

import shutil
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import uvicorn

from alvo import api
from alvo.aggregation import aggregate
from alvo.load import replace_period
from fonte import seeding, synthetic
from fonte_alvo import engine
from support.project import wait_until

# The browser's options: no sandbox, and no background requests to the network.
BROWSER = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 366
YEAR = "start=2024-01-01T00:00Z&end=2025-01-01T00:00Z"
DAY = "start=2024-05-21T00:00Z&end=2024-05-22T00:00Z"


@contextmanager
def launched():
    """Start Chromium, headless."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=BROWSER)
        yield browser
        browser.close()


def fill_year(url):
    """A leap year of synthetic windows, with a gap of four hours and one of a week."""
    timestamps = synthetic.minutes(START.date(), DAYS)
    starts, signals = aggregate(timestamps, synthetic.turbine(START.date(), DAYS, seeding.RANDOM_SEED))
    for first, last in (("2024-05-23T08:00", "2024-05-23T12:00"), ("2024-06-30", "2024-07-07")):
        for values in signals.values():
            values[(starts >= np.datetime64(first)) & (starts < np.datetime64(last))] = np.nan
    pool = engine.create(url, "test")
    replace_period(pool, START, START + timedelta(days=DAYS), starts, signals)
    pool.dispose()
    return url


class Server:
    """Alvo's API, which can be stopped and started again on its port."""

    def __init__(self, alvo, fonte_url):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "ALVO_DATABASE_URL": alvo.render_as_string(hide_password=False),
            **({"FONTE_API_URL": fonte_url} if fonte_url else {}),
        }

    def start(self):
        with pytest.MonkeyPatch.context() as environment:
            for name, value in self.environment.items():
                environment.setenv(name, value)
            self.server = uvicorn.Server(uvicorn.Config(api.app, port=self.port, log_config=None, lifespan="on"))
            self.thread = threading.Thread(target=self.server.run)
            self.thread.start()
            # The API reads its settings while it starts, so the environment lasts until then.
            wait_until(lambda: self.server.started or not self.thread.is_alive())
            assert self.server.started

    def stop(self):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()


@contextmanager
def serving(alvo, fonte_url):
    server = Server(alvo, fonte_url)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def year(make_database):
    return fill_year(make_database())


@pytest.fixture(scope="module")
def year_api(year, shared_connector):
    with serving(year, shared_connector) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(chromium, year_api):
    """Open the page; its `asked` lists the requested URLs, its `wrong` the errors."""
    contexts = []

    def open_page(fragment="", url=year_api.url, ready="(kW)", init="", **options):
        options = {"viewport": {"width": 1300, "height": 900}, "timezone_id": "America/Sao_Paulo", **options}
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(init)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.goto(f"{url}/#{fragment}")
        page.get_by_text(ready).first.wait_for()
        if "does not answer" not in ready:
            drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


def drawn(page, title=None):
    """Wait until the page shows the period."""
    if title:
        page.locator("#period", has_text=title).wait_for()
    page.wait_for_selector("main:not(.loading)")
