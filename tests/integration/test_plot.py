"""The picture of a day or a range: its lines, bands, gaps and labels, and the option --plot."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from sqlalchemy import text
from support.project import SIXTY_DAYS, alvo_values, bare, connector_over

import etl
from alvo import plot, schema, screen
from alvo.aggregation import STATISTICS

START = datetime(2024, 5, 20, tzinfo=UTC)
DAY = timedelta(days=1)


ALL = np.ones(144, dtype=bool)


def drawn(held=ALL, form="svg", axes=None, std=(), window=timedelta(minutes=10), zone="UTC"):
    """Draw steps from START on; only those in `held` have values."""
    axes = axes or {"power": "power (kW)"}
    window_starts = np.datetime64("2024-05-20", "us") + np.flatnonzero(held) * np.timedelta64(window)
    value = np.arange(float(len(window_starts)))
    signals = {f"{name}_{s}": value + offset for name in axes for s, offset in (("min", -9), ("mean", 0), ("max", 9))}
    signals |= {f"{name}_std": np.full(len(value), 3.0 if name in std else np.nan) for name in axes}
    title = f"2024-05-20 {zone}"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        return plot.picture(title, START, START + len(held) * window, window_starts, signals, axes, form, window)


def line_pieces(svg):
    """Count the separate pieces of the line of the mean."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {plot.LINE}[^>]*stroke-linejoin: miter', svg.decode())
    return sum(path.count("M ") for path in paths)


@pytest.mark.parametrize(
    ("gaps", "pieces"),
    [([], 1), ([(60, 70)], 2), ([(0, 10), (134, 144)], 1), ([(10, 20), (21, 30)], 3), ([(0, 144)], 0)],
)
def test_a_gap_is_blank_and_a_single_window_is_visible(gaps, pieces):
    held = np.ones(144, dtype=bool)
    for first, last in gaps:
        held[first:last] = False
    assert line_pieces(drawn(held)) == pieces


def words(svg):
    return re.findall(r">([^<>]*\S[^<>]*)</text>", svg.decode())


def test_each_variable_has_a_panel_in_the_asked_order():
    axes = {name: f"{name} ({unit})" for name, unit in (("power", "kW"), ("ambient_temperature", "degC"))}
    said = words(drawn(axes=axes | {"wind_speed": "wind_speed (m/s)"}))
    panels = ["power (kW)", "ambient temperature (°C)", "wind speed (m/s)"]
    assert [word for word in said if word in panels] == panels
    assert {"2024-05-20 UTC", "UTC", "mean of 10 minutes", "minimum to maximum"} < set(said)


@pytest.fixture
def figures(monkeypatch):
    """The drawn figures."""
    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: kept.append(figure) or savefig(figure, *a, **k))
    return kept


def tick_labels(axis):
    """Return the labels of the visible ticks."""
    first, last = axis.get_view_interval()
    return [tick.label1 for tick in axis.get_major_ticks() if first <= tick.get_loc() <= last]


@pytest.mark.parametrize(
    ("steps", "window", "labels"),
    [
        (
            144,
            timedelta(minutes=10),
            ["00:00\n2024-05-20", *(f"{hour:02}:00" for hour in range(3, 24, 3)), "00:00\n2024-05-21"],
        ),
        (7 * 48, timedelta(minutes=30), [f"2024-05-{day}" for day in range(20, 28)]),
        (183, timedelta(days=2), ["2024-07", "2024-09", "2024-11", "2025-01", "2025-03", "2025-05"]),
    ],
)
def test_the_axis_names_the_date_with_its_month(figures, steps, window, labels):
    drawn(np.ones(steps, dtype=bool), window=window)
    assert [label.get_text() for label in tick_labels(figures[0].axes[-1].xaxis)] == labels


@pytest.mark.parametrize("window", [timedelta(minutes=10), timedelta(days=1)])
def test_std_is_drawn_and_named_only_where_alvo_holds_it(window):
    axes = {name: name for name in ("power", "wind_speed")}
    without, with_one = (drawn(axes=axes, std=std, window=window) for std in ((), ("wind_speed",)))
    assert ("mean ± std" in words(with_one), "mean ± std" in words(without)) == (True, False)
    color = plot.BAND if window > plot.LONG else plot.STD
    bands = [len(re.findall(rf"(fill|stroke): {color}", svg.decode())) for svg in (without, with_one)]
    assert bands[0] < bands[1]


def test_the_band_of_a_long_step_is_mean_and_std_within_the_extremes(figures):
    drawn(np.ones(60, dtype=bool), window=timedelta(days=1), std=("power",))
    ((panel,),) = (figure.axes for figure in figures)
    data = {patch.get_label(): patch.get_data() for patch in panel.patches}
    assert data["minimum and maximum"].baseline is None
    mean, band = data["mean of 1 day"].values, data["mean ± std"]
    np.testing.assert_array_equal([band.baseline, band.values], [mean - 3, mean + 3])
    signals = {f"power_{s}": np.array([v]) for s, v in (("mean", 0.0), ("min", -1.0), ("max", 9.0), ("std", 3.0))}
    start = np.array(["2024-05-20"], "M8[us]")
    plot.picture("t", START, START + DAY, start, signals, {"power": "p"}, "svg", DAY)
    band = {patch.get_label(): patch.get_data() for patch in figures[1].axes[0].patches}["mean ± std"]
    assert (band.baseline, band.values) == (-1, 3)


@pytest.mark.parametrize("variables", [1, 2, 6])
@pytest.mark.parametrize("window", [timedelta(minutes=10), timedelta(days=1)])
def test_no_text_overlaps_another_or_leaves_the_picture(figures, variables, window):
    names = ["ambient_temperature_of_the_nacelle", *(f"v{number}" for number in range(1, variables))]
    axes = {name: f"{name} (degC)" for name in names}
    drawn(form="png", axes=axes, std=names, window=window, zone="America/Argentina/Ushuaia")
    (figure,) = figures
    texts = [*figure.texts, *figure.legends[0].get_texts(), figure.axes[-1].xaxis.label]
    for panel in figure.axes:
        texts += [panel._left_title, *tick_labels(panel.yaxis)]
    texts += tick_labels(figure.axes[-1].xaxis)
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not [other for other in boxes[:number] if box.overlaps(other)]


def test_the_lowest_value_lies_within_the_axis(figures):
    drawn()
    assert figures[0].axes[0].get_ylim()[0] < -9


def test_a_day_is_a_small_png_of_1600_pixels():
    png = drawn(form="png", std=("power",))
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 1600
    assert len(png) < 60_000


def run_plot(file, *arguments):
    try:
        return etl.main(["2024-05-20", *arguments, "--plot", str(file)])
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(("name", "begin"), [("day.png", b"\x89PNG"), ("day.PNG", b"\x89PNG"), ("day.SVG", b"<?xml")])
def test_the_command_draws_the_loaded_day(fonte_api, alvo, tmp_path, capsys, name, begin):
    assert run_plot(tmp_path / name) == 0
    assert capsys.readouterr().out.endswith(f"drawn: {tmp_path / name}\n")
    assert (tmp_path / name).read_bytes().startswith(begin)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_days_left_out_by_resume_are_drawn_and_an_old_picture_is_replaced(fonte_api, alvo, tmp_path):
    picture = tmp_path / "day.svg"
    picture.write_text("an old one")
    assert etl.main(["2024-05-20"]) == 0
    assert run_plot(picture, "--resume") == 0
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("asked", [["2024-06-15"], ["2024-05-29", "2024-05-30"]], ids=["day", "range"])
def test_a_day_without_samples_does_not_prevent_the_picture(fonte_api, alvo, tmp_path, asked):
    assert etl.main(["2024-05-20"]) == 0
    assert etl.main([*asked, "--plot", str(tmp_path / "day.png")]) == 5
    assert (tmp_path / "day.png").exists()


def test_a_long_range_is_reduced_to_named_steps(sixty_days_fonte, alvo_pool, tmp_path):
    with connector_over(sixty_days_fonte) as connector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("FONTE_API_URL", connector)
        assert etl.main([*SIXTY_DAYS, "--plot", str(tmp_path / "days.png")]) == 0
    starts, signals, window = screen.signals(alvo_pool, ["power"], START, START + 60 * DAY, etl.PLOT_POINTS)
    assert (len(starts), window) == (240, timedelta(hours=6))
    window_starts, windows, _ = screen.values(
        alvo_pool, START, START + 60 * DAY, ["power_mean", "power_min", "power_max"]
    )
    assert signals["power_max"].max() == windows["power_max"].max()
    # The mean of a step with a gap is that of its existing windows.
    steps = (window_starts - window_starts[0]) // np.timedelta64(6, "h")
    means = np.bincount(steps, windows["power_mean"]) / np.bincount(steps)
    np.testing.assert_allclose(signals["power_mean"], means)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = plot.picture("t", START, START + 60 * DAY, starts, signals, {"power": "power"}, "svg", window).decode()
    assert ">mean of 6 hours<" in svg


@pytest.mark.parametrize(
    ("window", "name"),
    [
        (timedelta(minutes=20), "20 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=12), "12 hours"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_the_legend_names_the_length_of_a_step(window, name):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        nothing = {f"power_{statistic}": np.array([]) for statistic in screen.STATISTICS}
        svg = plot.picture("t", START, START + DAY, np.array([], "M8[us]"), nothing, {"power": "p"}, "svg", window)
    assert f">mean of {name}<" in svg.decode()


def test_absent_statistics_are_left_blank(fonte_api, alvo, tmp_path):
    picture = tmp_path / "day.svg"
    assert run_plot(picture, "--statistics", "mean", "count", "--columns", "power") == 0
    assert line_pieces(picture.read_bytes()) == 1


def test_an_alvo_without_tables_is_not_drawn(fonte_api, alvo, tmp_path, capsys):
    assert etl.main(["2024-05-30", "2024-05-31", "--plot", str(tmp_path / "days.png")]) == 5
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'days.png'} is not drawn: Alvo holds nothing yet\n")
    assert list(tmp_path.iterdir()) == []


def test_a_range_with_a_failed_day_keeps_the_old_picture_and_says_so(fonte_api, alvo_pool, tmp_path, capsys):
    picture = tmp_path / "days.svg"
    picture.write_text("an old one")
    with alvo_pool.begin() as connection:
        schema.create_absent(connection)
        connection.execute(text("ALTER TABLE data ADD CHECK (timestamp::date <> '2024-05-28')"))
    # The failure counts, not the empty day before it.
    for first in ("2024-05-27", "2024-05-19"):
        assert etl.main([first, "2024-05-28", "--plot", str(picture)]) == 4
        assert capsys.readouterr().err.endswith(f"etl.py: {picture} is not drawn: not all days are loaded\n")
        assert picture.read_text() == "an old one"


def test_an_empty_day_keeps_its_exit_code_if_the_picture_cannot_be_written(fonte_api, alvo, capsys):
    assert etl.main(["2024-05-20"]) == 0
    assert etl.main(["2001-01-01", "--plot", "/proc/day.png"]) == 5
    empty, unwritten = capsys.readouterr().err.splitlines()
    assert "no finite sample" in empty
    assert unwritten.startswith("etl.py: /proc/day.png is not written: No such file or directory")


def test_a_full_standard_output_is_reported_once_beside_a_picture(fonte_api, alvo, tmp_path, folder):
    url = alvo.render_as_string(hide_password=False)
    environment = bare(folder) | {"FONTE_API_URL": fonte_api, "ALVO_DATABASE_URL": url}
    command = [sys.executable, "etl.py", "2024-05-20", "--plot", str(tmp_path / "day.png")]
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, cwd=folder, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (6, 1)
    assert (tmp_path / "day.png").exists()


def test_a_label_with_dollar_signs_is_no_formula(figures):
    midnight = datetime(2024, 5, 20, tzinfo=UTC)
    signals = {f"power_{statistic}": np.array([1.0]) for statistic in STATISTICS}
    starts = np.array(["2024-05-20"], "datetime64[us]")
    plot.picture("day", midnight, midnight + timedelta(days=1), starts, signals, {"power": "power ($x^$)"})
    assert figures[0].axes[0].get_title(loc="left") == r"power (\$x^\$)"


def test_days_that_failed_are_not_drawn(alvo, refused_port, monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_API_URL", f"http://127.0.0.1:{refused_port}")
    assert run_plot(tmp_path / "days.png", "2024-05-21") == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("day.pdf", "is no picture: expected a file that ends in .png or .svg"),
        ("day", "is no picture"),
        ("none/day.png", "is no file, or its folder is missing"),
        ("folder.png", "is no file, or its folder is missing"),
        ("pipe.png", "is no file, or its folder is missing"),
        (f"{'x' * 300}.png", "cannot be written: File name too long"),
    ],
)
def test_an_invalid_file_is_refused_before_the_load(fonte_api, alvo, tmp_path, capsys, name, said):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert run_plot(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert f"argument --plot: '{tmp_path / name}' {said}" in error
    assert error.count("\n") == 1
    assert alvo_values(alvo) is None


def test_without_matplotlib_the_install_command_is_printed(fonte_api, alvo, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_plot(tmp_path / "day.png") == 2
    assert "a picture needs Matplotlib: python -m pip install '.[plot]'" in capsys.readouterr().err
    assert alvo_values(alvo) is None


def test_an_unwritable_picture_is_exit_code_6_after_the_load(fonte_api, alvo, capsys):
    # The folder /proc exists, and takes no file.
    assert run_plot(Path("/proc/day.png")) == 6
    said = "/proc/day.png is not written: No such file or directory; Alvo keeps what it holds"
    assert capsys.readouterr().err == f"etl.py: {said}\n"
    assert len(alvo_values(alvo)) == 1152


def test_a_matplotlib_that_cannot_start_is_exit_code_6_after_the_load(run_command, fonte_api, alvo, tmp_path):
    url = alvo.render_as_string(hide_password=False)
    services = {"FONTE_API_URL": fonte_api, "ALVO_DATABASE_URL": url}
    picture = str(tmp_path / "day.png")
    run = run_command("etl.py", "2024-05-20", "--plot", picture, MPLBACKEND="none", **services)
    assert (run.returncode, run.stderr.count("\n")) == (6, 1)
    assert run.stderr.startswith(f"etl.py: {picture} is not drawn: ")
    assert run.stderr.endswith("; check MPLBACKEND; Alvo keeps what it holds\n")
    assert len(alvo_values(alvo)) == 1152


def test_a_picture_replaces_its_file_alone_and_a_link_stays_one(fonte_api, alvo, tmp_path):
    longest = tmp_path / f"{'x' * 251}.png"
    link, target, other = (tmp_path / name for name in ("link.png", "target.png", ".link.png.part"))
    target.write_bytes(b"old")
    other.write_bytes(b"not ours")
    link.symlink_to(target)
    assert [run_plot(link), run_plot(longest)] == [0, 0]
    assert link.is_symlink()
    assert target.read_bytes()[1:4] == longest.read_bytes()[1:4] == b"PNG"
    assert other.read_bytes() == b"not ours"
    assert sorted(tmp_path.iterdir()) == sorted([link, longest, target, other])


def test_the_axis_is_utc_whatever_zone_matplotlib_prefers():
    with matplotlib.rc_context({"timezone": "Asia/Tokyo"}):
        tokyo = re.findall(r">(\d\d:\d\d)<", drawn().decode())
    assert tokyo == re.findall(r">(\d\d:\d\d)<", drawn().decode()) != []
