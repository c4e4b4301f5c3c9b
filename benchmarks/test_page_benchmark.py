"""The first view of a day and of a year in Chromium: the browser's busy time, and the bytes transferred."""

import pytest

pytest.importorskip("playwright", reason="the benchmark of the page needs pip install playwright, and Chromium")
from support.browser import DAY, YEAR, drawn

ROUNDS = 5


@pytest.mark.parametrize(("period", "name"), [(DAY, "a day"), (YEAR, "a year")])
def test_first_view(benchmark, chromium, year_api, period, name):
    benchmark.group, benchmark.name = "first view of the page, from nothing to drawn", name
    busy_s, received_bytes = [], []

    def view():
        page = chromium.new_context(viewport={"width": 1300, "height": 900}).new_page()
        wire = page.context.new_cdp_session(page)
        received = []
        wire.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
        for domain in ("Network", "Performance"):
            wire.send(f"{domain}.enable")
        page.goto(f"{year_api.url}/#{period}")
        page.get_by_text("(kW)").first.wait_for()
        drawn(page)
        metrics = {metric["name"]: metric["value"] for metric in wire.send("Performance.getMetrics")["metrics"]}
        busy_s.append(metrics["TaskDuration"])
        received_bytes.append(sum(received))
        page.context.close()

    benchmark.pedantic(view, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["median seconds of the main thread"] = round(sorted(busy_s)[len(busy_s) // 2], 3)
    benchmark.extra_info["bytes transferred, at most"] = max(received_bytes)
