"""The page in headless Chromium, over Alvo's API, a real Alvo and a real connector."""

import contextlib
import csv
import io
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from support.browser import DAY, YEAR, drawn, fill_year, serving
from support.project import wait_until

from alvo import api, schema, screen
from alvo.load import replace_period
from fonte_alvo import engine

pytest.importorskip("playwright.sync_api", reason="tox -e page has it")

GAP = "start=2024-05-23T00:00Z&end=2024-05-24T00:00Z"  # from 08:00 to 12:00
EMPTY = "start=2024-07-02T00:00Z&end=2024-07-03T00:00Z"
MOST_BYTES = 300_000
POWER = "[data-variable=power] .summary"
LINE, GRID, SAMPLE, STD = (11, 79, 138), (233, 237, 241), (194, 65, 12), (142, 36, 170)
BAND, EDGE = (169, 203, 232), (111, 156, 196)
NOTHING_HERE = "Alvo holds no values of this period."


def pixels(page, variable, first, last):
    """The colours of a panel's plot between two parts of its width, as (r, g, b)."""
    return set(
        map(
            tuple,
            page.evaluate(
                """([variable, first, last]) => {
                    const section = document.querySelector(`[data-variable="${variable}"]`);
                    const canvas = section.querySelector("canvas"), plot = section.querySelector(".u-over");
                    const ratio = canvas.width / canvas.clientWidth;
                    const left = (plot.offsetLeft + first * plot.offsetWidth) * ratio;
                    const width = (last - first) * plot.offsetWidth * ratio;
                    const {data} = canvas.getContext("2d").getImageData(
                        left, plot.offsetTop * ratio, width, plot.offsetHeight * ratio);
                    const colours = new Set();
                    for (let i = 0; i < data.length; i += 4) if (data[i + 3]) colours.add(data.slice(i, i + 3).join());
                    return [...colours].map((colour) => colour.split(",").map(Number));
                }""",
                [variable, first, last],
            ),
        )
    )


def shares(page, variable, color):
    """The share of a panel's plot that has a colour."""
    return page.evaluate(
        """([variable, color]) => {
            const canvas = document.querySelector(`[data-variable="${variable}"] canvas`);
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let i = 0; i < data.length; i += 4) if (color.every((part, j) => data[i + j] === part)) count += 1;
            return count / (canvas.width * canvas.height);
        }""",
        [variable, list(color)],
    )


def drag(page, variable, first, last):
    box = page.locator(f'[data-variable="{variable}"] .u-over').bounding_box()
    page.mouse.move(box["x"] + first * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + last * box["width"], box["y"] + 60, steps=5)
    page.mouse.up()


def test_the_first_view_is_the_newest_day_with_units_numbers_and_its_age(open_page):
    page = open_page()
    assert page.locator("#period").inner_text() == "2024-12-31 UTC"
    assert page.locator("#panels h3").all_inner_texts() == [
        "wind speed (m/s)", "power (kW)", "ambient temperature (°C)"
    ]  # fmt: skip
    assert "144 of 144 windows (100.0 %)" in page.locator(POWER).inner_text()
    assert page.locator("#numbers tbody tr").count() == 3
    assert page.locator("#age:not(.stale)").inner_text() == "Newest value: 2024-12-31 23:50 UTC"
    assert "start=2024-12-31T00:00Z&end=2025-01-01T00:00Z&zone=utc" in page.url
    assert LINE in pixels(page, "power", 0, 1)
    assert page.wrong == []


@pytest.mark.parametrize(
    ("period_end", "hours_later", "said"),
    [
        ("2024-05-20 01:00Z", 12, "Newest value: 2024-05-20 00:50 UTC, 12 hours ago"),
        ("2024-05-20 01:00Z", 37, "Newest value: 2024-05-20 00:50 UTC, 37 hours ago"),
        ("2024-05-18 01:00Z", 37, "Newest value: 2024-05-20 00:50 UTC"),
    ],
)
def test_an_old_value_is_a_warning_if_the_feed_was_once_alive(
    open_page, hour_api, alvo_pool, period_end, hours_later, said
):
    server = hour_api("power_mean")
    with alvo_pool.begin() as connection:
        columns = "(period_start, period_end, variable, statistics, samples, expected, finished_at)"
        values = "(CAST(:end AS timestamptz) - INTERVAL '1 hour', :end, 'power', '{mean}', 60, 60, '2024-05-20 02:00Z')"
        connection.execute(text(f"INSERT INTO load {columns} VALUES {values}"), {"end": period_end})
    page = open_page(HOUR, url=server.url)
    page.clock.set_fixed_time(datetime(2024, 5, 20, 1, tzinfo=UTC) + timedelta(hours=hours_later))
    page.get_by_role("button", name="Day").click()
    drawn(page, "2024-05-20 UTC")
    assert page.locator("#age").inner_text() == said
    assert page.locator("#age.stale").count() == ("37 hours ago" in said)


def test_a_gap_stays_blank(open_page):
    page = open_page(GAP)
    for variable in ("wind_speed", "power", "ambient_temperature"):
        assert LINE in pixels(page, variable, 0, 7.9 / 24)
        assert LINE in pixels(page, variable, 12.1 / 24, 1)
        # Only the grid is drawn between.
        assert pixels(page, variable, 8.1 / 24, 11.9 / 24) <= {GRID}
    assert "120 of 144 windows (83.3 %)" in page.locator(POWER).inner_text()


def test_dragging_zooms_in_and_the_back_button_undoes_it(open_page):
    page = open_page(DAY)
    views = len([url for url in page.asked if "/view?" in url])
    drag(page, "power", 0.25, 0.5)
    drawn(page, "2024-05-21 06:00 to 12:00 UTC")
    assert len([url for url in page.asked if "/view?" in url]) == views + 1
    assert "start=2024-05-21T06:00Z&end=2024-05-21T12:00Z" in page.url
    page.go_back()
    drawn(page, "2024-05-21 UTC")
    page.go_forward()
    drawn(page, "2024-05-21 06:00 to 12:00 UTC")


def test_buttons_step_zoom_and_change_the_length(open_page):
    page = open_page(DAY)
    for name, title in [
        ("Next period", "2024-05-22 UTC"),
        ("Previous period", "2024-05-21 UTC"),
        ("Week", "2024-05-20 to 2024-05-26 UTC"),
        ("Next period", "2024-05-27 to 2024-06-02 UTC"),
        ("Zoom in", "2024-05-28 18:00 to 2024-06-01 06:00 UTC"),
        ("Zoom out", "2024-05-27 to 2024-06-02 UTC"),
        ("All", "2024-01-01 to 2024-12-31 UTC"),
        ("Day", "2024-07-02 UTC"),
    ]:
        page.get_by_role("button", name=name, exact=True).click()
        drawn(page, title)
    page.get_by_label("Date").fill("2024-02-29")
    drawn(page, "2024-02-29 UTC")
    assert page.wrong == []


def test_the_keyboard_moves_and_zooms_with_the_chart_in_focus(open_page):
    page = open_page(DAY)
    chart = page.locator("[data-variable=power] .chart")
    chart.focus()
    for name, title in [
        ("ArrowRight", "2024-05-22 UTC"),
        ("ArrowLeft", "2024-05-21 UTC"),
        ("+", "2024-05-21 06:00 to 18:00 UTC"),
        ("-", "2024-05-21 UTC"),
        ("Home", "2024-01-01 to 2024-12-31 UTC"),
    ]:
        page.keyboard.press(name)
        drawn(page, title)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert chart.evaluate("chart => getComputedStyle(chart).outlineWidth") == "3px"


@pytest.mark.parametrize("delay_ms", [0, 300])
def test_a_date_can_be_typed(open_page, delay_ms):
    page = open_page(DAY)
    page.get_by_label("Date").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("2024-12-29", delay=delay_ms)
    drawn(page, "2024-12-29 UTC")
    assert "144 of 144" in page.locator(POWER).inner_text()


def test_a_date_that_does_not_exist_changes_nothing(open_page):
    page = open_page(DAY)
    for typed in ("2024-02-30", "2024-13-01", "29/12/2024", ""):
        page.get_by_label("Date").fill(typed)
        assert page.locator("#period").inner_text() == "2024-05-21 UTC"
    page.locator("[data-variable=power] .chart").focus()
    assert page.get_by_label("Date").input_value() == "2024-05-21"


def test_the_calendar_picks_a_date(open_page):
    page = open_page(DAY)
    page.get_by_role("button", name="Calendar").click()
    page.locator("#calendar").evaluate(
        """calendar => { calendar.value = "2024-02-29"; calendar.dispatchEvent(new Event("change")); }"""
    )
    drawn(page, "2024-02-29 UTC")
    assert page.get_by_label("Date").input_value() == "2024-02-29"
    assert page.wrong == []


def test_zooming_out_ends_at_a_century(open_page):
    page = open_page(DAY)
    page.locator("[data-variable=power] .chart").focus()
    for _ in range(32):
        page.keyboard.press("-")
    drawn(page)
    title, steps = page.locator("#period").inner_text(), page.evaluate("history.length")
    page.keyboard.press("-")
    assert page.get_by_role("button", name="Zoom out").is_disabled()
    assert (page.locator("#period").inner_text(), page.evaluate("history.length")) == (title, steps)
    assert page.wrong == []


def test_shift_and_arrows_show_the_values_of_one_window(open_page):
    page = open_page(DAY)
    page.locator("[data-variable=power] .chart").focus()
    readout = page.locator("[data-variable=power] .readout[aria-live=polite]")
    for name, moment in [
        ("ArrowRight", "00:00"),
        ("ArrowRight", "00:10"),
        ("ArrowLeft", "00:00"),
        ("ArrowLeft", "00:00"),
    ]:
        page.keyboard.press(f"Shift+{name}")
        assert readout.inner_text().startswith(f"2024-05-21 {moment}: mean ")
        assert readout.inner_text().endswith(" kW")
    assert page.locator("#period").inner_text() == "2024-05-21 UTC"


def test_a_finger_reads_values_and_zooms(open_page):
    page = open_page(DAY, has_touch=True, viewport={"width": 360, "height": 800})
    plot = page.locator("[data-variable=power] .u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    wire = page.context.new_cdp_session(page)

    def touch(kind, *parts):
        points = [{"x": box["x"] + part * box["width"], "y": box["y"] + 50} for part in parts]
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.25)
    for part in (0.3, 0.4, 0.5):
        touch("touchMove", part)
    page.locator("[data-variable=power] .readout", has_text="2024-05-21 1").wait_for()
    touch("touchEnd")
    drawn(page, "2024-05-21 06:00 to 12:00 UTC")


def test_everything_can_be_reached_by_tab(open_page):
    page = open_page(DAY)
    reached = set()
    page.locator("body").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.outerHTML.slice(0, 60)"))
    buttons = {"previous", "next", "in", "out", "date", "pick", "std", "samples", "csv", "link"}
    assert buttons <= reached
    assert sum('class="chart"' in each for each in reached) >= 1


def test_local_time_is_that_of_the_browser_and_keeps_the_day(open_page):
    page = open_page(DAY)
    page.get_by_role("button", name="Local").click()
    drawn(page, "2024-05-21 America/Sao_Paulo")
    assert "start=2024-05-21T03:00Z&end=2024-05-22T03:00Z&zone=local" in page.url
    page.get_by_role("button", name="UTC").click()
    drawn(page, "2024-05-21 UTC")
    assert "start=2024-05-21T00:00Z&end=2024-05-22T00:00Z&zone=utc" in page.url


def test_the_local_day_of_a_clock_change_has_23_hours(open_page):
    page = open_page("start=2024-03-30T23:00Z&end=2024-03-31T22:00Z&zone=local", timezone_id="Europe/Berlin")
    drawn(page, "2024-03-31 Europe/Berlin")
    assert "138 of 138 windows" in page.locator(POWER).inner_text()
    page.get_by_role("button", name="Next period").click()
    drawn(page, "2024-04-01 Europe/Berlin")
    assert "144 of 144 windows" in page.locator(POWER).inner_text()


def test_a_local_day_that_begins_within_a_window_has_all_its_windows(open_page):
    day = "start=2024-05-20T18:15Z&end=2024-05-21T18:15Z&zone=local"
    page = open_page(day, timezone_id="Asia/Kathmandu")
    drawn(page, "2024-05-21 Asia/Kat")
    assert "144 of 144 windows" in page.locator(POWER).inner_text()


def test_a_link_reproduces_the_view(open_page):
    page = open_page(DAY)
    drag(page, "power", 0.25, 0.5)
    page.get_by_label("mean ± std").check()
    page.get_by_label("1-minute samples").check()
    drawn(page, "06:00 to 12:00")
    link = page.locator("#link").get_attribute("href")
    assert link == page.url
    other = open_page(link.partition("#")[2])
    drawn(other, "2024-05-21 06:00 to 12:00 UTC")
    assert other.get_by_label("mean ± std").is_checked()
    assert other.get_by_label("1-minute samples").is_checked()


def test_the_shown_period_can_be_downloaded(open_page):
    page = open_page(DAY)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV of this period").click()
    assert download.value.suggested_filename == "alvo_2024-05-21T0000Z_2024-05-22T0000Z.csv"
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    variables = ("wind_speed", "power", "ambient_temperature")
    assert Counter(row["signal"] for row in rows) == {
        f"{name}_{statistic}": 144 for name in variables for statistic in ("mean", "min", "max", "std")
    }
    assert {row["timestamp"][:10] for row in rows} == {"2024-05-21"}


def test_the_samples_of_fonte_are_drawn_for_a_day_or_less(open_page):
    page = open_page(DAY)
    assert SAMPLE not in pixels(page, "power", 0, 1)
    page.get_by_label("1-minute samples").check()
    wait_until(lambda: SAMPLE in pixels(page, "power", 0, 1))
    page.get_by_role("button", name="Week").click()
    page.get_by_text("1-minute samples are shown for a day or less: zoom in.").wait_for()


def test_samples_beyond_the_statistics_are_drawn(open_page, hour_api):
    # Its means are below 6, Fonte's samples are hundreds of kW.
    page = open_page(f"{HOUR}&samples=1", url=hour_api("power_mean").url)
    wait_until(lambda: SAMPLE in pixels(page, "power", 0, 1))


@pytest.fixture
def hour_api(alvo_pool, alvo, shared_connector):
    """Make a function that serves an Alvo with one hour of signals, on a day that Fonte holds too."""
    servers = contextlib.ExitStack()

    def hour_api(*signals, start=datetime(2024, 5, 20, tzinfo=UTC)):
        starts = np.datetime64(start.replace(tzinfo=None), "us") + np.arange(6) * np.timedelta64(600, "s")
        with alvo_pool.begin() as connection:
            schema.create_absent(connection)
        replace_period(alvo_pool, start, start + timedelta(hours=1), starts, {name: np.arange(6.0) for name in signals})
        return servers.enter_context(serving(alvo, shared_connector))

    with servers:
        yield hour_api


HOUR = "start=2024-05-20T00:00Z&end=2024-05-20T01:00Z"


def test_a_variable_that_fonte_lacks_does_not_hide_the_samples_of_others(open_page, hour_api):
    server = hour_api("power_mean", "pitch_mean")
    page = open_page(f"{HOUR}&samples=1", url=server.url)
    page.get_by_text("Fonte has no 1-minute samples of pitch.").wait_for()
    assert [url.partition("&columns=")[2] for url in page.asked if "/samples?" in url] == ["power"]


def test_a_variable_may_have_any_name(open_page, hour_api):
    names = ["__proto__", "constructor", "curve", "rotor speed"]
    server = hour_api("power_mean", *(f"{name}_mean" for name in names))
    page = open_page(f"{HOUR}&samples=1", url=server.url)
    assert page.locator("#panels h3").all_inner_texts() == ["power (kW)", "proto", *names[1:]]
    assert page.locator("[data-variable=curve] .summary").inner_text().startswith("mean 2.5, ")
    assert page.get_by_role("group", name="rotor speed").count() == 1
    assert page.locator("#curve .summary").inner_text() == "No window of this period has both."
    assert page.locator("#curve .chart").is_hidden()
    assert page.wrong == []


def test_a_statistic_that_cannot_be_drawn_is_reported(open_page, hour_api):
    server = hour_api("power_count", "power_std")
    page = open_page(f"{HOUR}&std=1", url=server.url)
    page.get_by_text("mean ± std is not drawn: no variable in Alvo has both.").wait_for()
    assert page.locator(POWER).inner_text() == "no mean, minimum or maximum; 6 of 6 windows"
    assert page.locator("[data-variable=power] .chart").is_hidden()
    page.get_by_label("mean ± std").uncheck()
    page.get_by_text("mean ± std is not drawn").wait_for(state="hidden")


def test_the_mean_of_a_period_counts_only_windows_with_a_mean(open_page, hour_api, alvo_pool):
    """A step of the year's view holds windows with a mean beside windows that have a maximum alone."""
    server = hour_api("power_max")
    start = datetime(2024, 5, 21, tzinfo=UTC)
    starts = np.datetime64("2024-05-21", "us") + np.arange(288) * np.timedelta64(600, "s")
    mean = np.concatenate([np.tile([0, np.nan], 72), np.full(144, 3.0)])
    signals = {"power_mean": mean, "power_max": np.full(288, 9.0)}
    replace_period(alvo_pool, start, start + timedelta(days=2), starts, signals)
    page = open_page("start=2024-01-01T00:00Z&end=2025-01-01T00:00Z", url=server.url)
    assert page.locator(POWER).inner_text().startswith("mean 2, min ")


def test_std_is_drawn_when_it_is_chosen(open_page):
    page = open_page(DAY)
    assert STD not in pixels(page, "power", 0, 1)
    page.get_by_label("mean ± std").check()
    wait_until(lambda: STD in pixels(page, "power", 0, 1))
    assert "&std=1" in page.url


def test_an_empty_variable_takes_one_line(open_page, hour_api, alvo_pool):
    server = hour_api("power_mean", "pitch_mean")
    with alvo_pool.begin() as connection:
        connection.execute(text("DELETE FROM data WHERE signal_id = (SELECT id FROM signal WHERE name = 'pitch_mean')"))
    page = open_page(HOUR, url=server.url)
    pitch = page.locator("[data-variable=pitch]")
    assert pitch.locator(".summary").inner_text() == "no values; 0 of 6 windows"
    assert pitch.bounding_box()["height"] < 30
    with alvo_pool.begin() as connection:
        copied = "SELECT timestamp, (SELECT id FROM signal WHERE name = 'pitch_mean'), value FROM data"
        connection.execute(text(f"INSERT INTO data {copied}"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("[data-variable=pitch] .summary", has_text="6 of 6 windows").wait_for()
    wait_until(lambda: LINE in pixels(page, "pitch", 0, 1))
    assert page.wrong == []


def test_a_variable_without_values_shows_those_of_no_other_period(open_page, hour_api, alvo_pool):
    server = hour_api("power_mean", "pitch_mean")
    with alvo_pool.begin() as connection:
        later = "SELECT timestamp + INTERVAL '1 hour', signal_id, value FROM data JOIN signal ON id = signal_id"
        connection.execute(text(f"INSERT INTO data {later} WHERE name = 'power_mean'"))
    page = open_page(HOUR, url=server.url)
    pitch = page.locator("[data-variable=pitch]")
    pitch.locator(".chart").focus()
    page.keyboard.press("ArrowRight")
    pitch.locator(".summary", has_text="no values; 0 of 6 windows").wait_for()
    assert page.evaluate("document.activeElement.id") == "next"
    page.locator("[data-variable=power] .u-over").hover()
    page.locator("[data-variable=power] .readout", has_text="2024-05-20 01:").wait_for()
    assert pitch.locator(".readout").inner_text() == ""
    assert pitch.locator(".summary").is_visible()


def test_a_variable_that_appears_later_has_its_unit_too(open_page, hour_api):
    server = hour_api("power_mean")
    page = open_page(HOUR, url=server.url)
    hour_api("wind_speed_mean")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#panels h3", has_text="wind speed (m/s)").wait_for()


def test_a_band_is_not_cut_where_there_are_no_extremes(open_page):
    columns = """async () => {
        const {Panel} = await import("./page/chart.js");
        const statistics = {windows: [6, 6], mean: [1000, 1000], std: [100, 100], min: [null, 950], max: [null, 1050]};
        return Panel.prototype.columns.call({shown: {from: 0, bucket: 7.2e6, statistics}}).slice(-2);
    }"""
    assert open_page(DAY).evaluate(columns) == [[900, 950], [1100, 1050]]


def test_the_page_shows_the_length_of_a_step(open_page):
    page = open_page(DAY)
    assert page.locator("#reduction").inner_text() == "in steps of 10 min"
    assert page.locator("#curve .summary").inner_text().startswith("Means of 144 windows")
    page.get_by_role("button", name="All").click()
    drawn(page, "2024-01-01")
    assert page.locator("#reduction").inner_text() == "in steps of 1 d"
    assert "a cell is 1 d" in page.locator("#legend").inner_text()
    said = page.locator("#curve .summary").inner_text()
    assert said == "Means of 51,660 windows; a larger point stands for several."


def test_a_long_step_has_mean_and_std_as_its_band_and_the_extremes_as_lines(open_page):
    page = open_page(DAY)
    legend = page.locator("#legend")
    assert "minimum to maximum" in legend.inner_text()
    assert EDGE not in pixels(page, "power", 0, 1)
    day = shares(page, "power", BAND)
    page.get_by_role("button", name="All").click()
    drawn(page, "2024-01-01")
    assert {"mean ± std", "minimum and maximum"} < set(legend.inner_text().split("\n"))
    assert {LINE, BAND, EDGE} <= pixels(page, "power", 0, 1)
    assert page.get_by_label("mean ± std").is_disabled()
    # From minimum to maximum, the band would fill nearly the whole plot.
    assert day < shares(page, "wind_speed", BAND) < 0.4
    assert shares(page, "power", BAND) < 0.75
    page.get_by_role("button", name="Week").click()
    drawn(page, "2024-07-01")
    assert page.get_by_label("mean ± std").is_enabled()


def test_every_tick_is_labelled_with_dates_of_one_form(open_page):
    page = open_page(
        DAY,
        init="""
        window.labels = [];
        const fill = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
            window.labels.push([this.canvas.closest("[data-variable]")?.dataset.variable, text, x / devicePixelRatio]);
            fill.call(this, text, x, y);
        };
    """,
    )

    def labels():
        return [(label, x) for variable, label, x in page.evaluate("window.labels") if variable == "power"]

    times = [f"{hour:02}:00" for hour in range(0, 24, 2)]
    wait_until(lambda: [label for label, _ in labels() if ":" in label][-13:] == [*times, "00:00"])
    assert [label for label, _ in labels() if "-" in label][-1:] == ["2024-05-21"]
    page.evaluate("window.labels = []")
    page.evaluate("location.hash = 'start=2024-01-01T00:00Z&end=2024-03-01T00:00Z'")
    drawn(page, "2024-01-01 to 2024-02-29")
    dates = [label for label, _ in labels() if "-" in label]
    assert {len(date) for date in dates} == {10}
    assert dates[-1] == "2024-03-01"
    width = page.locator("[data-variable=power] canvas").bounding_box()["width"]
    assert max(x for label, x in labels() if label == "2024-03-01") + 33 <= width


def test_the_link_copies_itself(open_page):
    page = open_page(DAY, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_text("Copy link").click()
    page.get_by_text("Link copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_without_a_clipboard_the_page_says_where_the_link_is(open_page):
    page = open_page(DAY, init="Object.defineProperty(Navigator.prototype, 'clipboard', {value: undefined})")
    page.get_by_text("Copy link").click()
    page.get_by_text("Copy the address of this page").wait_for()
    assert page.wrong == []


def test_the_power_curve_shows_the_point_under_the_pointer_and_steps_by_key(open_page):
    page = open_page(DAY)
    readout = page.locator("#curve .readout")
    page.locator("#curve .chart").focus()
    page.keyboard.press("Shift+ArrowRight")
    first = readout.inner_text()
    assert re.fullmatch(r"wind speed [\d.]+ m/s, power [\d.,-]+ kW(: \d+ windows)?", first)
    page.keyboard.press("Shift+ArrowRight")
    assert readout.inner_text() != first
    point = page.locator("#curve .u-cursor-pt").bounding_box()
    plot = page.locator("#curve .u-over").bounding_box()
    page.mouse.move(plot["x"] + plot["width"] - 2, plot["y"] + plot["height"] - 2)
    wait_until(lambda: readout.inner_text() == "")
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    readout.get_by_text("m/s, power").wait_for()


@pytest.mark.parametrize("width", [390, 820, 1300])
def test_nothing_moves_when_values_are_read(open_page, width):
    page = open_page(DAY, viewport={"width": width, "height": 900})
    places = "[...document.querySelectorAll('.chart')].map((chart) => chart.getBoundingClientRect().top + scrollY)"
    before = page.evaluate(places)
    for chart in (page.locator("[data-variable=power] .chart"), page.locator("#curve .chart")):
        chart.focus()
        page.keyboard.press("Shift+ArrowRight")
    assert page.locator(".readout:visible").count() >= 2
    assert page.evaluate(places) == before


def test_the_table_holds_the_std_of_all_samples_of_the_period(open_page, year, make_pool):
    page = open_page(DAY)
    headers = page.locator("#numbers thead th").all_inner_texts()
    assert headers == ["variable", "mean", "min", "max", "std", "windows", "coverage"]
    with make_pool(year).connect() as connection:
        one_step = screen.buckets(
            connection,
            screen.signal_ids(connection),
            ["power"],
            datetime(2024, 5, 21, tzinfo=UTC),
            datetime(2024, 5, 22, tzinfo=UTC),
            1,
        )
    (expected,) = one_step[2]["power"]["std"]
    shown = page.locator("#numbers tbody tr").nth(1).locator("td").nth(3).inner_text()
    assert float(shown.replace(",", "")) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("width", [360, 390])
@pytest.mark.parametrize("fragment", [DAY, f"{YEAR}&std=1&samples=1"])
def test_the_first_chart_is_on_a_phones_first_screen_and_the_help_explains_touch(open_page, fragment, width):
    page = open_page(fragment, viewport={"width": width, "height": 844}, is_mobile=True, has_touch=True)
    box = page.locator("#panels .chart").first.bounding_box()
    assert box["y"] + box["height"] < 700  # the browser's bars take the rest
    assert page.get_by_text("Tap a chart").is_visible()
    assert page.get_by_text("arrow keys").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_tap_reads_a_value_and_keeps_the_period(open_page):
    page = open_page(DAY, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.locator("[data-variable=wind_speed] .u-over").tap()
    page.locator("[data-variable=wind_speed] .readout", has_text="2024-05-21 1").wait_for()
    assert page.locator("#period").inner_text() == "2024-05-21 UTC"


def test_the_pages_lines_are_short():
    for file in api.PAGE.glob("[!u]*.*"):
        assert [line for line in file.read_text().splitlines() if len(line) > 120 and file.suffix != ".svg"] == []


def test_an_empty_day_takes_one_line_and_offers_the_nearest_days(open_page):
    page = open_page(EMPTY, ready=NOTHING_HERE)
    for part in ("#panels", "#below", "#legend"):
        assert page.locator(part).is_hidden()
    page.get_by_role("button", name="Go on to 2024-07-07").click()
    drawn(page, "2024-07-07 UTC")
    assert LINE in pixels(page, "power", 0, 1)
    page.go_back()
    page.get_by_role("button", name="Go back to 2024-06-29").click()
    drawn(page, "2024-06-29 UTC")
    assert "144 of 144" in page.locator(POWER).inner_text()
    assert page.wrong == []


def test_a_refused_period_is_reported(open_page):
    page = open_page(DAY)
    page.evaluate("location.hash = 'start=%2B012024-01-01T00:00Z&end=%2B012024-01-02T00:00Z'")
    page.get_by_text("The server refuses this: start_timestamp").wait_for()
    page.go_back()
    drawn(page, "2024-05-21 UTC")
    assert page.get_by_text("The server refuses this").count() == 0


def test_the_page_reports_a_stopped_api_and_notices_its_return(open_page, year, shared_connector):
    with serving(year, shared_connector) as server:
        page = open_page(DAY, url=server.url)
        server.stop()
        page.get_by_role("button", name="Next period").click()
        page.get_by_role("alert").get_by_text("Alvo's API has been away since").wait_for()
        # The values are still those of the day before.
        assert page.locator("#period").inner_text() == "2024-05-21 UTC"
        server.start()
        drawn(page, "2024-05-22 UTC")
        page.get_by_role("alert").wait_for(state="hidden")
        assert "144 of 144" in page.locator(POWER).inner_text()


def test_an_answer_that_is_cut_off_is_asked_for_again(open_page):
    page = open_page(DAY)
    cut = {"status": 200, "content_type": "application/json", "body": "{"}
    page.route("**/view?*", lambda route: route.fulfill(**cut), times=1)
    page.get_by_role("button", name="Next period").click()
    page.get_by_role("alert").get_by_text("no answer. The values shown are older").wait_for()
    drawn(page, "2024-05-22 UTC")
    assert page.get_by_text("The server refuses this").count() == 0


def test_an_idle_page_notices_that_the_api_is_away(open_page, year, shared_connector):
    with serving(year, shared_connector) as server:
        page = open_page(DAY, url=server.url)
        page.clock.install()
        page.reload()
        drawn(page)
        server.stop()
        page.clock.run_for(61_000)
        page.get_by_role("alert").get_by_text("Alvo's API has been away since").wait_for()
        server.start()
        page.get_by_role("button", name="Try now").click()
        page.get_by_role("alert").wait_for(state="hidden")


def test_new_values_appear_by_themselves(open_page, make_database, shared_connector):
    url = fill_year(make_database())
    with serving(url, shared_connector) as server:
        page = open_page("start=2025-01-01T00:00Z&end=2025-01-02T00:00Z", url=server.url, ready=NOTHING_HERE)
        page.clock.install()
        page.reload()
        page.get_by_text(NOTHING_HERE).wait_for()
        pool = engine.create(url, "test")
        with pool.begin() as connection:
            new = "SELECT timestamp + '1 day'::interval, signal_id, value FROM data WHERE timestamp >= '2024-12-31Z'"
            connection.execute(text(f"INSERT INTO data {new}"))
        pool.dispose()
        page.clock.run_for(61_000)
        page.locator(POWER, has_text="144 of 144 windows").wait_for()


def test_changed_values_appear_by_themselves(open_page, hour_api, alvo_pool):
    server = hour_api("power_mean")
    page = open_page(HOUR, url=server.url)
    page.clock.install()
    page.reload()
    page.locator(POWER, has_text="mean 2.5, ").wait_for()
    drawn(page)
    with alvo_pool.begin() as connection:
        connection.execute(text("UPDATE data SET value = 7 WHERE value = 3"))
    page.clock.run_for(61_000)
    page.locator(POWER, has_text="mean 3.167, ").wait_for()
    with alvo_pool.begin() as connection:
        connection.execute(text("UPDATE data SET value = 8 WHERE value = 4"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator(POWER, has_text="mean 3.833, ").wait_for()


def test_a_click_while_the_page_polls_raises_no_alarm(open_page):
    page = open_page(DAY)
    page.clock.install()
    page.reload()
    drawn(page)
    page.evaluate(
        """() => {
            window.alarms = 0;
            const observer = new MutationObserver(() => { window.alarms += 1; });
            observer.observe(document.getElementById("away"), {attributes: true});
        }"""
    )
    page.route("**/period?", lambda route: None, times=1)
    with page.expect_request("**/period?"):
        page.clock.run_for(61_000)
    page.get_by_role("button", name="Next period").click()
    drawn(page, "2024-05-22 UTC")
    page.get_by_text("of 144 windows").first.wait_for()
    assert page.evaluate("window.alarms") <= 1  # hidden is set once more


def test_an_absent_fonte_is_reported_in_its_place_and_the_rest_works(open_page, year, refused_port):
    with serving(year, f"http://127.0.0.1:{refused_port}") as server:
        page = open_page(f"{DAY}&samples=1", url=server.url, ready="The units are unknown")
        page.get_by_text("No 1-minute samples: Fonte does not answer as it should").wait_for()
        assert page.locator("#panels h3").all_inner_texts() == ["wind speed", "power", "ambient temperature"]
        assert LINE in pixels(page, "power", 0, 1)
        assert page.locator("#away").is_hidden()


def test_an_absent_database_of_alvo_is_reported_and_tried_again(open_page, year, refused_port, shared_connector):
    away = year.set(host="127.0.0.1", port=refused_port)
    with serving(away, shared_connector) as server:
        page = open_page(DAY, url=server.url, ready="Alvo's database does not answer")
        assert page.get_by_role("alert").is_visible()
        page.wait_for_event("response", lambda response: response.url.endswith("/period?"))


def test_without_a_fonte_the_page_names_the_setting(open_page, year):
    with serving(year, None) as server:
        page = open_page(f"{DAY}&samples=1", url=server.url, ready="The units are unknown")
        page.get_by_text("No 1-minute samples: FONTE_API_URL is unset").wait_for()


def test_with_an_empty_alvo_the_page_says_how_to_load_a_day(open_page, alvo, alvo_pool, shared_connector):
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
    with serving(alvo, shared_connector) as server:
        page = open_page(url=server.url, ready="Alvo holds no values yet: python etl.py DATE loads a day")
        page.get_by_text(NOTHING_HERE).wait_for()
        assert page.get_by_role("button", name="All").is_disabled()
        assert page.locator("#csv").is_hidden()
        assert page.wrong == []


def test_an_emptied_alvo_still_answers(open_page, hour_api, alvo_pool):
    server = hour_api("power_mean")
    with alvo_pool.begin() as connection:
        connection.execute(text("DELETE FROM data"))
    page = open_page(HOUR, url=server.url, ready=NOTHING_HERE)
    page.get_by_role("button", name="Day").click()
    drawn(page, "2024-05-20 UTC")
    assert page.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 320])
@pytest.mark.parametrize(
    ("fragment", "ready"), [(f"{DAY}&std=1&samples=1", "(kW)"), (YEAR, "(kW)"), (EMPTY, NOTHING_HERE)]
)
def test_the_page_is_accessible_and_fits_its_window(open_page, scheme, width, fragment, ready):
    # Imported here, because no other test needs it.
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(fragment, ready=ready, color_scheme=scheme, viewport={"width": width, "height": 800})
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_pressed_button_is_distinguishable_in_high_contrast(open_page):
    page = open_page(DAY, forced_colors="active")
    background = "document.querySelector('[aria-pressed={}]')"
    colors = [
        page.evaluate(f"getComputedStyle({background.format(pressed)}).backgroundColor")
        for pressed in ("true", "false")
    ]
    assert colors[0] != colors[1]


def test_numbers_keep_the_digits_before_their_point_and_at_least_four(open_page):
    values = [1900.3, 101325.04, 999999, 12.34567, -0.000123456, 1e6, 0, None]
    shown = open_page(DAY).evaluate("async (values) => values.map((await import('./page/chart.js')).number)", values)
    assert shown == ["1,900.3", "101,325", "999,999", "12.35", "-0.0001235", "1.000e+6", "0", "none"]


def test_no_request_leaves_the_host(open_page, year_api):
    page = open_page(f"{DAY}&std=1&samples=1")
    page.get_by_role("button", name="All").click()
    drawn(page, "2024-01-01")
    assert len(page.asked) > 10
    assert {url.partition("/")[2].split("/")[1] for url in page.asked} == {f"127.0.0.1:{year_api.port}"}


def test_the_first_view_of_a_year_transfers_little(chromium, year_api):
    page = chromium.new_page()
    wire = page.context.new_cdp_session(page)
    wire.send("Network.enable")
    received = []
    wire.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    page.goto(f"{year_api.url}/#{YEAR}")
    page.get_by_text("(kW)").first.wait_for()
    drawn(page)
    assert len(received) >= 10
    assert sum(received) <= MOST_BYTES
    page.close()
