"""Reads the files that people have, CSV and its relatives, piece by piece; seed.py has the options. A line is a row."""

import csv
import lzma
import re
import sys
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fonte import schema
from fonte.arrow import Timestamps
from fonte.seeding import NAMES, Columns
from fonte_alvo.command import Failure

# Bounds the memory.
PIECE_LINES = 50_000
SAMPLE_LINES = 100
SHOWN_BAD_ROWS = 5
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "blanks": " "}
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "null", "None")
ISO_8601 = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(?P<offset> ?(Z|[+-]\d\d(:?\d\d)?))?)?")
NAT = np.datetime64("NaT")
# A field may be as long as its line.
csv.field_size_limit(2**31 - 1)


class FileError(Failure):
    """The file cannot be loaded as it is; nothing was."""

    exit_code = 2


@contextmanager
def opened(name: str, options: Namespace) -> Iterator["File"]:
    """Open a file, - for standard input, and find out its form. Raises FileError."""
    # Each line is one text: pandas knows the compressions, the encodings and the ends of lines.
    raw = {"sep": "\x1f", "names": ["line"], "index_col": False, "quoting": csv.QUOTE_NONE}
    text = {"dtype": object, "na_filter": False, "skip_blank_lines": False, "encoding": options.encoding}
    try:
        with pd.read_csv(sys.stdin.buffer if name == "-" else name, iterator=True, **raw, **text) as reader:
            yield File(name, options, reader)
    except (OSError, EOFError, LookupError, ValueError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise FileError(f"{name}: {_shown(error, 200)}; --encoding names its encoding, such as utf-16") from error


class File:
    """A file whose form is known; an iteration yields its columns, piece by piece. Raises FileError."""

    def __init__(self, name: str, options: Namespace, reader: pd.io.parsers.TextFileReader) -> None:
        """Read the beginning, which tells the form."""
        self.name, self.options, self._reader = name, options, reader
        self.left_out = Path("standard-input.bad" if name == "-" else f"{name}.bad")
        self.bad_rows, self._told, self._interval = 0, list[str](), np.timedelta64(0, "us")
        self._length, self._after, self._widths = _places(options.timestamp_format, len(options.timestamp))
        self._start = self._lines(options.header_line or 0).tolist()
        header = self._header()
        self._start += self._lines(options.first_row - 1 - len(self._start)).tolist()
        self._first, self._held = self._lines(PIECE_LINES), pd.Series(dtype=object)
        sample = [line for line in self._first if not self._is_empty(line)][:SAMPLE_LINES]
        if not sample:
            raise FileError(f"{name}: no row after its first {len(self._start)} lines")
        self._delimiter, self._names = self._understood(header, sample)
        self._headers = self._wanted(self._names)
        self.form = f"{name}: delimiter {self._delimiter!r}, timestamp from {' '.join(options.timestamp)}" + "".join(
            f", {variable} from {column}" for variable, column in self._headers.items()
        )

    def __iter__(self) -> Iterator[Columns]:
        """Yield timestamps (n,) and values (n,) of each variable, NaN where there is none."""
        lines, rows = self._first, 0
        while len(lines):
            following = self._lines(PIECE_LINES)
            columns = self._columns(pd.concat([self._held, lines]), last=not len(following))
            rows += len(columns["timestamp"])
            yield columns
            lines = following
        if self.bad_rows and not (rows and self.options.skip_bad_rows):
            told = "; ".join(self._told) + "; ..." * (self.bad_rows > SHOWN_BAD_ROWS)
            remedy = "--decimal and --missing say how values are written, --skip-bad-rows leaves such rows out"
            raise FileError(f"{self.name}: {self.bad_rows:,} bad rows, nothing was loaded: {told}; {remedy}")

    def _lines(self, count: int) -> pd.Series:
        """Read the next lines; the index holds their numbers."""
        lines = pd.Series(dtype=object)
        with suppress(StopIteration):
            lines = self._reader.get_chunk(count)["line"] if count > 0 else lines
        return lines.set_axis(lines.index + 1)

    def _is_empty(self, line: str) -> bool:
        return not line.strip() or bool(self.options.comment and line.lstrip().startswith(self.options.comment))

    def _header(self) -> str:
        """Return the line that is named as the header, without a comment's mark, or the first that is not empty."""
        if self.options.header_line is not None:
            return "".join(self._start[-1:]).lstrip().removeprefix(self.options.comment or "")
        while len(lines := self._lines(1)):
            self._start += lines.tolist()
            if not self._is_empty(self._start[-1]):
                return str(self._start[-1])
        raise FileError(f"{self.name}: no header in {len(self._start)} lines")

    def _understood(self, header: str, sample: list[str]) -> tuple[str, list[str]]:
        """Return the given delimiter, or the only one that gives the wanted columns, and the names of the columns."""
        given, fitting = self.options.delimiter, dict[str, tuple[str, list[str]]]()
        for delimiter in [DELIMITERS[given]] if given else DELIMITERS.values():
            rows = [_split(line, delimiter) for line in sample]
            widths = {len(row) for row in rows}
            names = _split(header, delimiter) if header else [str(place + 1) for place in range(len(rows[0]))]
            names = [""] * self.options.index_column + [name.strip() for name in names]
            if self._wanted(names) and (given or (len(names) in widths if header else len(widths) == 1)):
                fitting.setdefault(str([names, rows]), (delimiter, names))
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        shown = f"{self.name}: the {'header' if header else 'first row'} is {_shown(header or sample[0], 200)}"
        if fitting:
            raise FileError(f"{shown}, which has several readings: --delimiter names the delimiter")
        columns = [*self.options.timestamp, *(dict(self.options.column).values() or [f"some of {', '.join(NAMES)}"])]
        remedy = "--timestamp and --column name the columns, --header-line, --delimiter and --encoding tell the form"
        raise FileError(f"{shown}; expected {', '.join(columns)}, each once: {remedy}")

    def _wanted(self, names: list[str]) -> dict[str, str]:
        """Return the column of each variable; nothing unless all that is wanted is there once."""
        headers = dict(self.options.column) or {name: name for name in NAMES if name in names}
        times = [each for each in self.options.timestamp if each[0] != "="]
        return headers if all(names.count(each) == 1 for each in [*times, *headers.values()]) else {}

    def _columns(self, lines: pd.Series, *, last: bool) -> Columns:
        """Return the columns of these lines; those at their end whose hour the next ones decide are held."""
        problems: dict[int, str] = {}
        rows: dict[int, list[str]] = {}
        for number, line in lines.items():
            if self._is_empty(line):
                continue
            fields = _split(line, self._delimiter)
            if len(fields) == len(self._names) and not line.count('"') % 2:
                rows[number] = fields
            else:
                problems[number] = (
                    f"{len(fields)} fields instead of {len(self._names)}, or an open quote: {_shown(line)}"
                )
        table = pd.DataFrame.from_dict(rows, orient="index", columns=range(len(self._names)), dtype=object)
        values = {name: self._numbers(table, name, problems) for name in self._headers}
        timestamps, twice = self._timestamps(table, problems)
        decided = len(table) if last else int(np.flatnonzero(~twice).max(initial=-1)) + 1
        self._held = lines[table.index[decided:]]
        self._tell({number: problems[number] for number in sorted(problems.keys() - self._held.index)}, lines)
        good = ~table.index.isin([*problems, *self._held.index])
        return {"timestamp": self._labelled(timestamps[good]), **{name: each[good] for name, each in values.items()}}

    def _tell(self, problems: dict[int, str], lines: pd.Series) -> None:
        if problems and self.options.skip_bad_rows:
            with self.left_out.open("a" if self.bad_rows else "w", encoding=self.options.encoding) as stream:
                start = [] if self.bad_rows else self._start
                stream.writelines(f"{line}\n" for line in [*start, *lines[list(problems)]])
        self.bad_rows += len(problems)
        told = [f"line {number}: {problem}" for number, problem in problems.items()]
        self._told += told[: SHOWN_BAD_ROWS - len(self._told)]

    def _numbers(self, table: pd.DataFrame, name: str, problems: dict[int, str]) -> npt.NDArray[np.float64]:
        texts = table[self._names.index(self._headers[name])].str.strip()
        mark, markers = self.options.decimal, [*MISSING, *self.options.missing]
        points = texts if mark == "." else texts.str.translate(str.maketrans({mark: ".", ".": mark}))
        numbers = pd.to_numeric(points, errors="coerce").astype(float)
        missing = texts.isin(markers) | numbers.isin(pd.to_numeric(pd.Series(markers), errors="coerce").dropna())
        for number, text in texts[~missing & ~np.isfinite(numbers)].items():
            problems[number] = f"{name} {_shown(text)} is no number with the decimal mark {mark}"
        return np.asarray(numbers.mask(missing), float)

    def _timestamps(self, table: pd.DataFrame, problems: dict[int, str]) -> tuple[Timestamps, npt.NDArray[np.bool_]]:
        """Return the timestamps, and which of them name an hour that occurs twice."""
        form, zone = self.options.timestamp_format, self.options.csv_timezone
        parts = [
            (table[self._names.index(each)] if each[0] != "=" else pd.Series(each[1:], table.index, dtype=object))
            .str.strip()
            .map(lambda text, width=width: text.zfill(width) if text.isdecimal() else text)
            for each, width in zip(self.options.timestamp, self._widths, strict=True)
        ]
        written = parts[0].str.cat(parts[1:], sep=" ")
        normal = written.map(self._normal)
        parsed = pd.to_datetime(normal, format=form or "ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
        wall = parsed.to_numpy().astype("datetime64[us]")
        wall = wall + ((normal != written) & (normal != "")).to_numpy().astype("timedelta64[D]")
        timestamps, twice = wall, np.zeros(len(wall), bool)
        if zone:
            naive = ["%z" not in form if form else not re.search("[Z+-]", text[10:]) for text in normal]
            local, twice = _to_utc(np.where(naive, wall, NAT), zone)
            timestamps = np.where(naive, local, wall)
        for place in np.flatnonzero(np.isnat(timestamps)):
            said = f"does not follow --timestamp-format {form}" if form else "is not ISO 8601: use --timestamp-format"
            if twice[place]:
                said = f"occurs twice in {zone}, and the order of the rows does not tell which it is"
            elif not np.isnat(wall[place]):
                said = f"does not exist in {zone}, where clocks go forward then"
            problems[table.index[place]] = f"timestamp {_shown(written.iloc[place])} {said}"
        return timestamps, twice

    def _normal(self, text: str) -> str:
        """Return a time as pandas can read it, with 00:00 for 24:00, or nothing where it is none."""
        form = self.options.timestamp_format
        # pandas reads words such as now, and takes 105 for 10:05 in %H%M.
        if not (re.search(r"\d", text) and self._length in (0, len(text)) if form else ISO_8601.fullmatch(text)):
            return ""
        hour = len(text) - self._after if form else len("YYYY-MM-DDT")
        return f"{text[:hour]}00{text[hour + 2 :]}" if re.match(r"24[:.0]*(?![:.\d])", text[hour:]) else text

    def _labelled(self, timestamps: Timestamps) -> Timestamps:
        """Return the starts of the intervals."""
        if self.options.label == "end" and not self._interval and len(timestamps):
            steps, counts = np.unique(np.diff(np.unique(timestamps)), return_counts=True)
            if not len(steps):
                raise FileError(f"{self.name}: --label end needs two rows, which show the interval")
            self._interval = steps[counts.argmax()]
        return timestamps - self._interval


def look(file: File) -> Iterator[str]:
    """Read a file to its end, and yield lines that tell what it holds."""
    last, edges, steps, counts = np.empty(0, "datetime64[us]"), list[str](), Counter[int](), Counter[str]()
    for columns in file:
        timestamps = columns["timestamp"]
        steps.update(np.diff(np.concatenate([last, timestamps])).astype(int).tolist())
        last = np.concatenate([last, timestamps])[-1:]
        for place in (0, -1) if len(timestamps) else ():
            edges.append(" ".join(f"{name}={values[place]}" for name, values in columns.items()))
        counts["rows"] += len(timestamps)
        for each in schema.VARIABLES:
            if each.name in columns:
                values = columns[each.name]
                outside = (values < each.lowest) | (values > each.highest)
                counts[f"without {each.name}"] += int(np.isnan(values).sum())
                counts[f"with {each.name} outside {each.lowest} to {each.highest} {each.unit}"] += int(outside.sum())
    interval = max(steps, key=steps.__getitem__, default=0)
    counts["gaps"] = sum(count for step, count in steps.items() if step > interval)
    counts["not later than the row before"] = sum(count for step, count in steps.items() if step <= 0)
    yield f"  first {edges[0]}"
    yield f"  last {edges[-1]}"
    yield f"  interval {interval / 60e6:g} min"
    yield from (f"  {count:,} {what}" for what, count in counts.items())


def _places(form: str | None, columns: int) -> tuple[int, int, list[int]]:
    """Return the length of a time without marks between its parts, the hour's place from its end, columns' digits."""
    if form is None:
        return 0, 0, [0] * columns
    early, late = (datetime(2024, 5, 20, hour, tzinfo=UTC).strftime(form) for hour in (11, 22))
    day = None
    with suppress(ValueError):
        day = pd.to_datetime(early, format=form)
    if day is None or (day.year, day.month, day.day) != (2024, 5, 20):
        raise FileError(f"--timestamp-format {form!r} gives no day: expected one such as '%d.%m.%Y %H:%M'")
    hour = next((len(early) - place for place, pair in enumerate(zip(early, late, strict=True)) if len({*pair}) > 1), 0)
    length = len(early) if re.search("%[YymdjHMS]%[YymdjHMS]", form) else 0
    parts = [len(part) for part in early.split(" ")]
    return length, hour, parts if len(parts) == columns else [0] * columns


def _to_utc(wall: Timestamps, zone: tzinfo) -> tuple[Timestamps, npt.NDArray[np.bool_]]:
    """Return times of a zone in UTC, NaT where they have no meaning, and which of them occur twice.

    The hour that clocks repeat has its second pass where the times of its day go back, once.
    """
    index = pd.DatetimeIndex(wall)
    utc, second = (
        index.tz_localize(zone, ambiguous=np.full(len(wall), is_first), nonexistent="NaT")
        .tz_convert(None)
        .to_numpy()
        .astype("datetime64[us]")
        for is_first in (True, False)
    )
    twice = ~np.isnat(utc) & (utc != second)
    days = wall.astype("datetime64[D]")
    for day in np.unique(days[twice]):
        places = np.flatnonzero(twice & (days == day))
        back = np.flatnonzero(np.diff(wall[places]) <= np.timedelta64(0)) + 1
        later = places[back[0] :] if len(back) == 1 else places
        utc[later] = second[later] if len(back) == 1 else NAT
    return utc, twice


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        line = " ".join(line.split())
    return (
        next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)) if '"' in line else line.split(delimiter)
    )


def _shown(said: object, most: int = 40) -> str:
    """Return foreign text cut, and with its control characters escaped."""
    text = str(said)
    return repr(text if len(text) <= most else f"{text[:most]}...")
