"""Metadata and checks for Dagster: the days' figures and pictures, and the tables on both sides."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import numpy as np
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from sqlalchemy import Engine, inspect

from alvo import load, plot, screen
from alvo.aggregation import STATISTICS, WINDOW_S, Timestamps, Values
from fonte_alvo import engine
from orchestration import day as one
from orchestration.dagster import thumbnail
from orchestration.dagster.partitions import DAYS, HOUR, ZONE
from orchestration.dagster.resources import AlvoDatabase, Period
from orchestration.day import Day, EmptyPeriod, Outcome

ASSET = dg.AssetKey("ten_minute_statistics")
GROUP = "fonte_to_alvo"
OWNERS = ["team:wind-data"]
OF_FONTE = """The turbine's 1-minute samples, in Fonte's table `data`; read through its HTTP API alone.

One row a minute: `timestamp`, `wind_speed` (m/s), `power` (kW), `ambient_temperature` (degC). Observe it to see the
period that it holds."""
OF_ALVO = """The 10-minute statistics, in Alvo's table `data`, for everyone who reads Alvo.

Overdue if, two hours after the schedule, wind speed and power of the day before are not loaded to its
end. Loading an older day does not count."""
FONTE = dg.AssetSpec("fonte_data", group_name=GROUP, description=OF_FONTE, owners=OWNERS, kinds={"fastapi"})
COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("timestamp", "timestamptz", "start of the 10-minute window"),
        dg.TableColumn("signal_id", "integer", "the signal's id; its name is {variable}_{statistic}: wind_speed_mean"),
        dg.TableColumn("value", "double precision", "in the unit of the variable"),
    ]
)
ALVO = dg.AssetSpec(
    "alvo_data",
    deps=[ASSET],
    group_name=GROUP,
    description=OF_ALVO,
    owners=OWNERS,
    kinds={"postgres", "table"},
    metadata={"dagster/column_schema": COLUMNS},
    # The window opens at midnight, because only the load of the day before counts.
    freshness_policy=dg.FreshnessPolicy.cron(f"0 {HOUR + 2} * * *", timedelta(hours=HOUR + 2), ZONE.key),
)
COMPLETE, PLAUSIBLE = "day_is_complete", "values_are_plausible"
CHECKS = {
    "every_window_has_its_rows": "As many rows of mean, min and max as windows with samples; of std, not more.",
    "mean_between_min_and_max": "No mean lies below the minimum or above the maximum of its window.",
    "values_are_finite": "Every value is a finite number.",
    COMPLETE: "A warning: the samples of every variable reach the last window of the day.",
    PLAUSIBLE: "A warning: the connector describes plausible ranges, and all samples lie in them.",
}
WARNINGS = {COMPLETE, PLAUSIBLE}
SPECS = [dg.AssetCheckSpec(name, asset=ASSET, description=CHECKS[name], partitions_def=DAYS) for name in CHECKS]

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation
Metadata = Mapping[str, dg.MetadataValue | int | float]
Checked = dict[str, tuple[bool, dict[str, int | str]]]


def held(period: Period | None) -> Metadata:
    """Return Fonte's period and rows as metadata; none if Fonte is empty or the connector does not say."""
    if period is None:
        return {}
    first, last = (dg.MetadataValue.timestamp(moment) for moment in (period.first, period.last))
    return {"first_timestamp": first, "last_timestamp": last, "dagster/row_count": period.rows}


def empty(
    instance: dg.DagsterInstance, day: Day, variables: Sequence[str], reason: EmptyPeriod, alvo: Engine
) -> Iterator[Event]:
    """Yield an empty day's materialization, without which a backfill fails, and its checks.

    Raises DatabaseError.
    """
    metadata: dict[str, bool | str] = {"empty": True, "reason": f"{reason}; Alvo stays as it was"}
    yield dg.AssetMaterialization(ASSET, metadata=metadata, partition=str(day.date))
    yield from _evaluations(instance, day, _checked(day, dict.fromkeys(variables, 0), {}, *_held(alvo, day, variables)))


def events(
    instance: dg.DagsterInstance, day: Day, done: Outcome, alvo: Engine, units: Mapping[str, str]
) -> Iterator[Event]:
    """Yield a day's materialization with the load's figures, and pictures and checks of Alvo's present rows.

    units: by variable, where known. Raises DatabaseError.
    """
    window_starts, signals, not_finite = _held(alvo, day, list(done.windows))
    axes = {name: f"{name} ({units[name]})" if name in units else name for name in done.windows}
    summary = dg.MetadataValue.md("\n".join(f"- {line.strip()}" for line in one.summary(day, done).splitlines()))
    metadata = {
        "summary": summary,
        **_thumbnails(day, window_starts, signals, axes),
        "picture": dg.MetadataValue.md(_picture(day, window_starts, signals, axes)),
        **_figures(day, done),
    }
    yield dg.AssetMaterialization(ASSET, metadata=metadata, partition=str(day.date))
    checked = _checked(day, done.windows, done.implausible, window_starts, signals, not_finite)
    yield from _evaluations(instance, day, checked)
    has_all_columns = {*one.COLUMNS} <= {*done.windows}
    if has_all_columns and checked[COMPLETE][0] and timedelta() <= datetime.now(UTC) - day.end < timedelta(days=1):
        yield dg.AssetMaterialization(ALVO.key, metadata={"loaded": str(day.date)})


def _held(alvo: Engine, day: Day, variables: Sequence[str]) -> tuple[Timestamps, dict[str, Values], int]:
    """Return Alvo's values of a day as screen.values does; none while it has no tables. Raises DatabaseError."""
    names = [f"{variable}_{statistic}" for variable in variables for statistic in STATISTICS]
    with engine.failures("Alvo", "check ALVO_DATABASE_URL and run the day again"):
        if not inspect(alvo).has_table("data"):
            return np.empty(0, "datetime64[us]"), {name: np.empty(0) for name in names}, 0
        return screen.values(alvo, day.start, day.end, names)


def late(alvo: AlvoDatabase, days: Sequence[Day]) -> list[date]:
    """Return the dates of days that Alvo does not record as loaded after their end, with all expected samples.

    Raises SettingsError and DatabaseError.
    """
    periods = [(day.start, day.end) for day in days]
    with engine.failures("Alvo", "check ALVO_DATABASE_URL"), alvo.connect(1) as pool:
        records = load.recorded(pool, periods, one.COLUMNS, STATISTICS)
    return [day.date for day, each in zip(days, records, strict=True) if each.incomplete or not each.loaded]


def _evaluations(instance: dg.DagsterInstance, day: Day, checked: Checked) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the checks of a materialized day; Dagster shows only those that name its materialization."""
    key = str(day.date)
    latest = dg.AssetRecordsFilter(ASSET, asset_partitions=[key])
    (made,) = instance.fetch_materializations(latest, limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=made.storage_id, run_id=made.run_id, timestamp=made.timestamp
    )
    for name, (passed, metadata) in checked.items():
        severity = dg.AssetCheckSeverity.WARN if name in WARNINGS else dg.AssetCheckSeverity.ERROR
        yield dg.AssetCheckEvaluation(ASSET, name, passed, metadata, target, severity, partition=key)


def _picture(day: Day, window_starts: Timestamps, signals: Mapping[str, Values], axes: Mapping[str, str]) -> str:
    title = f"{day.date} {day.zone}"
    png = plot.picture(title, day.start, day.end, window_starts, signals, axes)
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _thumbnails(
    day: Day, window_starts: Timestamps, signals: Mapping[str, Values], axes: Mapping[str, str]
) -> Metadata:
    """Return for each variable with a value its range and a small picture."""
    first, last = (np.datetime64(bound.replace(tzinfo=None), "us") for bound in (day.start, day.end))
    windows = np.arange(first, last, np.timedelta64(WINDOW_S, "s"))
    drawn = {}
    for name, label in axes.items():
        low, mean, high = (signals[f"{name}_{statistic}"] for statistic in ("min", "mean", "max"))
        if np.isfinite(mean).any():
            span = f"{np.nanmin(low):.4g} to {np.nanmax(high):.4g}"
            drawn[label] = dg.MetadataValue.md(thumbnail.markdown(span, windows, window_starts, low, mean, high))
    return drawn


def _figures(day: Day, done: Outcome) -> dict[str, int | float]:
    samples, expected = sum(done.samples.values()), done.expected * len(done.samples)
    return {
        "samples": samples,
        "coverage_percent": 100 * samples / expected,
        "windows": sum(done.windows.values()),
        "values_written": done.report.written,
        "values_unchanged": done.report.unchanged,
        "values_removed": done.report.removed,
        "seconds": round(sum(done.seconds.values()), 3),
        "dagster/partition_row_count": done.report.written + done.report.unchanged,
    }


def _checked(
    day: Day,
    windows: Mapping[str, int],
    implausible: Mapping[str, int],
    window_starts: Timestamps,
    signals: Mapping[str, Values],
    not_finite: int,
) -> Checked:
    """Return for each check whether it passed, and its counts.

    Per variable: windows, the number of windows with samples; implausible, the number of implausible samples.
    """
    rows = {name: int(np.isfinite(values).sum()) for name, values in signals.items()}
    wrong = sum(_out_of_order(*(signals[f"{name}_{s}"] for s in ("min", "mean", "max"))) for name in windows)
    last = {name: _last(window_starts, signals[f"{name}_mean"]) for name in windows}
    reaching = np.datetime64((day.end - timedelta(seconds=WINDOW_S)).replace(tzinfo=None), "us")
    return {
        # A window with one sample has no standard deviation.
        "every_window_has_its_rows": (
            all(rows[f"{name}_{s}"] == windows[name] for name in windows for s in ("min", "mean", "max"))
            and all(rows[f"{name}_std"] <= windows[name] for name in windows),
            {**rows, **{f"{name}_windows": expected for name, expected in windows.items()}},
        ),
        "mean_between_min_and_max": (wrong == 0, {"windows_out_of_order": wrong}),
        "values_are_finite": (not_finite == 0, {"values_not_finite": not_finite}),
        COMPLETE: (
            all(moment == reaching for moment in last.values()),
            {f"{name}_last_window": f"{moment}Z" if moment else "none" for name, moment in last.items()},
        ),
        PLAUSIBLE: (
            not any(implausible.get(name, windows[name]) for name in windows),
            {f"{name}_implausible": n for name, n in implausible.items()},
        ),
    }


def _out_of_order(low: Values, mean: Values, high: Values) -> int:
    return int(((mean < low) | (mean > high)).sum())


def _last(window_starts: Timestamps, values: Values) -> np.datetime64 | None:
    """Return the start of the last window with a value, if any has one."""
    return next(iter(window_starts[np.isfinite(values)][::-1]), None)
