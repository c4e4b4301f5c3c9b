"""Reads CSV and similar files in pieces, one row per line. seed.py defines the options."""

import codecs
import csv
import lzma
import os
import re
import sys
import tarfile
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd

from fonte import schema
from fonte.arrow import Timestamps, Values
from fonte.seeding import NAMES, Columns
from fonte_alvo.command import Failure, count

# Bounds the memory.
PIECE_LINES = 50_000
# The header and the first row are within these lines.
HEAD_LINES = 1000
SAMPLE_LINES = 100
SHOWN_BAD_ROWS = 5
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "blanks": " "}
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "null", "None"]
ISO_8601 = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?: ?(?:Z|[+-]\d\d(?::?\d\d)?))?)?"
END_OF_DAY = r"(?<=[T ])24(?=:?00(?::?00(?:\.0+)?)?(?![\d:.]))"
# Digits in groups of three: with separators of thousands, or with another decimal mark.
GROUPS = r"[+-]?\d{1,3}(?:[.,'\u2019\s]\d{3})+"
# Widths of the numbers of a --timestamp-format, other than 2.
WIDTHS = {"Y": 4, "j": 3, "f": 6}
# Moved by up to a day (zone, offset, --label), a timestamp stays within the years 1 to 9999.
FIRST_DAY, LAST_DAY = np.array(["0001-01-02", "9999-12-30"], "datetime64[D]")
BAD_ARCHIVE = (lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
# pandas raises ImportError where it needs another package, such as one for .zst.
UNREADABLE = (OSError, EOFError, ImportError, LookupError, ValueError, *BAD_ARCHIVE)
# A field may be as long as its line.
csv.field_size_limit(2**31 - 1)


class FileError(Failure):
    """The file cannot be loaded as it is; nothing was loaded."""

    exit_code = 2


@contextmanager
def opened(name: str, options: Namespace) -> Iterator["File"]:
    """Open a file, - for standard input, and find out its form. Raises FileError."""
    # pandas reads each line as one text, because it knows compressions, encodings and line ends.
    lines = {"sep": "\x1f", "names": ["line"], "index_col": False, "quoting": csv.QUOTE_NONE, "skip_blank_lines": False}
    texts = {"dtype": object, "na_filter": False, "iterator": True}
    # A shell keeps the ~ of --csv=~/x.csv; Path.expanduser fails for an unknown user.
    name = os.path.expanduser(name)  # noqa: PTH111
    if name == "-" and sys.stdin is None:
        raise FileError("-: standard input is closed: redirect a file to it")
    # pandas would fetch a URL, but no absolute path is one.
    source = sys.stdin.buffer if name == "-" else Path(name).absolute()
    try:
        encoding = options.encoding or _encoding(name)
        with _reader(source, encoding=encoding, **lines, **texts) as reader:
            yield File(name, options, encoding, reader)
    except FileNotFoundError as error:
        raise FileError(f"{name}: there is no such file on this machine: correct its name, or download it") from error
    except BrokenPipeError:
        # Standard output's, not the file's.
        raise
    except (*UNREADABLE, pd.errors.ParserWarning) as error:
        said = _shown(error, 200)
        if separated := re.search(r"fields in line (\d+)|loss of data", said):
            said = f"line {separated[1] or 1} holds the control character 0x1f: remove it"
        remedy = "--encoding names its encoding; save a workbook as CSV, and decompress standard input first"
        raise FileError(f"{name}: {said}" + f"; {remedy}" * isinstance(error, UnicodeError | LookupError)) from error


class File:
    """A file whose form is known; iterating yields its columns piece by piece. Raises FileError."""

    def __init__(self, name: str, options: Namespace, encoding: str, reader: pd.io.parsers.TextFileReader) -> None:
        """Find out the form from the first lines."""
        _check(options.timestamp_format or "%Y%j")
        self.name, self.options, self._encoding, self._reader = name, options, encoding, reader
        is_file = Path(name).is_file() and not name.startswith(("/dev/stdin", "/dev/fd/", "/proc/"))
        self.left_out = Path(f"{name}.bad" if is_file else "standard-input.bad")
        self._part = self.left_out.with_name(f".{uuid4().hex}.part")
        self.bad_rows, self._told = 0, list[str]()
        # How far --label end moves the timestamps; 0 until the first rows show it.
        self.interval = np.timedelta64(round((options.interval or 0) * 60e6), "us")
        # For each local day whose clocks repeat an hour: how often its times went back, and the last time.
        self._repeated: dict[object, tuple[int, np.datetime64]] = {}
        head = self._lines(HEAD_LINES)
        # The header is the line that --header-line names, which may be a comment, or else the first that is not empty.
        number = options.header_line
        if number is None:
            number = next((number for number, line in head.items() if not self._is_empty(line)), 0)
        if 0 < options.first_row <= number:
            raise FileError(f"{name}: --first-row {options.first_row}: expected a line below the header, line {number}")
        # A header may begin with an empty name, so its first tab stays.
        header = re.sub(rf"^\s*{re.escape(options.comment)}" if options.comment else "^", "", head.get(number, ""))
        start = max(number, options.first_row - 1)
        self._start, self._first = head[:start], head[start:]
        sample = [line for line in self._first if not self._is_empty(line)][:SAMPLE_LINES]
        if not sample:
            raise FileError(f"{name}: no row in lines {start + 1} to {HEAD_LINES:,}")
        self._delimiter, self._names = self._delimiter_and_names(header, sample)
        self._places = {variable: self._names.index(each) for variable, each in self._wanted(self._names).items()}
        self.decimal = options.decimal or self._mark(sample)
        self.variables = [each for each in schema.VARIABLES if each.name in self._places]
        columns = {"timestamp": " ".join(options.timestamp)} | self._wanted(self._names)
        taken = ", ".join(f"{variable} from {column}" for variable, column in columns.items())
        form = f"encoding {encoding}, decimal mark {self.decimal!r}, delimiter {self._delimiter!r}"
        self.form = f"{name}: {form}, {taken}"

    def __iter__(self) -> Iterator[Columns]:
        """Yield timestamps (n,) and values (n,) of each variable, NaN where there is none."""
        lines, rows = self._first, 0
        while len(lines):
            columns = self._columns(lines)
            rows += len(columns["timestamp"])
            if len(columns["timestamp"]):
                yield columns
            lines = self._lines(PIECE_LINES)
        for day, (times_back, _) in self._repeated.items():
            if times_back != 1:
                said = f"clocks in {self.options.csv_timezone} repeat an hour on {day}"
                raise FileError(f"{self.name}: {said}, and the order of rows does not tell which is which: give UTC")
        if self.bad_rows and not (rows and self.options.skip_bad_rows):
            told = "; ".join(self._told) + "; ..." * (self.bad_rows > SHOWN_BAD_ROWS)
            remedy = "correct them by --decimal, --missing or --timestamp-format, or leave them out by --skip-bad-rows"
            raise FileError(f"{self.name}: {count(self.bad_rows, 'bad row')}, nothing was loaded: {told}; {remedy}")

    def keep_bad_rows(self, failed: type[BaseException] | None, *_: object) -> None:
        """Give the file of bad rows its name, or remove it if nothing was loaded; an ExitStack calls it."""
        if failed and self.bad_rows and self.options.skip_bad_rows:
            self._part.unlink(missing_ok=True)
        elif self.bad_rows and not failed:
            self._part.rename(self.left_out)

    def _lines(self, number: int) -> pd.Series:
        """Read the next lines; the index holds their numbers."""
        with suppress(StopIteration), warnings.catch_warnings():
            # pandas only warns where the first line has more fields, and drops them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            lines = self._reader.get_chunk(number)["line"]
            return lines.set_axis(lines.index + 1)
        return pd.Series(dtype=object)

    def _is_empty(self, line: str) -> bool:
        return not line.strip() or bool(self.options.comment and line.lstrip().startswith(self.options.comment))

    def _delimiter_and_names(self, header: str, sample: list[str]) -> tuple[str, list[str]]:
        """Return the delimiter (given, or the only one with the wanted columns) and the columns' names."""
        given, fitting = self.options.delimiter, dict[str, tuple[str, list[str]]]()
        for delimiter in [DELIMITERS[given]] if given else DELIMITERS.values():
            rows = [_split(line, delimiter) for line in sample]
            widths = {len(row) for row in rows}
            names = _split(header, delimiter) if header else [str(place + 1) for place in range(len(rows[0]))]
            names = [""] * self.options.index_column + [name.strip() for name in names]
            if self._wanted(names) and (given or (len(names) in widths if header else len(widths) == 1)):
                # Tabs are also blanks: delimiters that give the same rows are one.
                fitting.setdefault(str([names, rows]), (delimiter, names))
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        wanted = [*self.options.timestamp, *(dict(self.options.column).values() or [f"some of {' '.join(NAMES)}"])]
        found = f"{'more than one' if fitting else 'no'} delimiter gives the columns {', '.join(wanted)}, each once"
        remedy = "--timestamp and --column name columns, --delimiter, --header-line and --encoding describe the form"
        raise FileError(f"{self.name}: {found}, in {_shown(header or sample[0], 200)}: {remedy}")

    def _mark(self, sample: list[str]) -> str:
        """Return the decimal mark: a comma if a number has one that cannot separate thousands, else a point."""
        rows = [_split(line, self._delimiter) for line in sample]
        fields = [row[place].strip() for row in rows for place in self._places.values() if place < len(row)]
        comma = next((field for field in fields if re.fullmatch(r"[+-]?\d+,(\d{1,2}|\d{4,})", field)), None)
        point = next((field for field in fields if re.match(r"[+-]?\d*\.\d", field)), None)
        if self.name.endswith(".bad") and any("," in field or "." in field for field in fields):
            raise FileError(f"{self.name}: --decimal is needed: these rows do not show the mark of their file")
        if comma and point:
            said = f"numbers such as {_shown(comma)} and {_shown(point)} contradict each other"
            raise FileError(f"{self.name}: {said}: --decimal chooses the mark")
        return "," if comma else "."

    def _wanted(self, names: list[str]) -> dict[str, str]:
        """Return each variable's column; nothing unless every wanted column is there exactly once."""
        headers = dict(self.options.column) or {name: name for name in NAMES if name in names}
        times = [each for each in self.options.timestamp if each[0] != "="]
        return headers if all(names.count(each) == 1 for each in [*times, *headers.values()]) else {}

    def _columns(self, lines: pd.Series) -> Columns:
        problems: dict[int, str] = {}
        rows: dict[int, list[str]] = {}
        for number, line in lines.items():
            if self._is_empty(line):
                continue
            fields = _split(line, self._delimiter)
            if len(fields) == len(self._names) and not line.count('"') % 2:
                rows[number] = [field.strip() for field in fields]
            else:
                wrong = f"{count(len(fields), 'field')} instead of {len(self._names)}"
                wrong = "an open quote" if line.count('"') % 2 else wrong
                problems[number] = f"{wrong}: {_shown(line)}"
        table = pd.DataFrame.from_dict(rows, orient="index", columns=range(len(self._names)), dtype=object)
        values = {name: self._numbers(table[place], name, problems) for name, place in self._places.items()}
        timestamps = self._timestamps(table, problems)
        self._set_aside(dict(sorted(problems.items())), lines)
        good = ~table.index.isin(list(problems))
        return {"timestamp": self._labelled(timestamps)[good], **{name: each[good] for name, each in values.items()}}

    def _set_aside(self, problems: dict[int, str], lines: pd.Series) -> None:
        if problems and self.options.skip_bad_rows and not self.options.dry_run:
            # Python 3.14's exists() hides that a name is too long.
            with suppress(FileNotFoundError):
                self.left_out.lstat()
                # It may hold corrections.
                raise FileError(f"{self.left_out} is there: load it, or remove it")
            with self._part.open("a" if self.bad_rows else "w", encoding=self._encoding) as stream:
                start = [] if self.bad_rows else self._start
                stream.writelines(f"{line}\n" for line in [*start, *lines[list(problems)]])
        told = [f"line {number}: {problem}" for number, problem in problems.items()]
        self._told += told[: SHOWN_BAD_ROWS - len(self._told)]
        self.bad_rows += len(problems)

    def _numbers(self, texts: pd.Series, name: str, problems: dict[int, str]) -> Values:
        mark, markers = self.decimal, pd.Series([*MISSING, *self.options.missing])
        numbers = _numeric(texts, mark)
        # A marker may have a point where the file has commas.
        marked = pd.concat([_numeric(markers, mark), _numeric(markers, ".")]).dropna()
        missing = texts.isin(markers) | numbers.isin(marked)
        for number, text in texts[~missing & ~np.isfinite(numbers)].items():
            remedy = "; remove separators of thousands" * bool(re.fullmatch(GROUPS, text))
            problems[number] = f"{name} {_shown(text)} is no number with the decimal mark {mark}{remedy}"
        return np.asarray(numbers.mask(missing), float)

    def _timestamps(self, table: pd.DataFrame, problems: dict[int, str]) -> Timestamps:
        """Return the timestamps, NaT where there is a problem."""
        form, zone = self.options.timestamp_format, self.options.csv_timezone
        forms = (form or "").split(" ")
        parts = [
            table[self._names.index(each)] if each[0] != "=" else pd.Series(each[1:], table.index, dtype=object)
            for each in self.options.timestamp
        ]
        if len(forms) == len(parts):
            parts = [_padded(part, each) for part, each in zip(parts, forms, strict=True)]
        written = parts[0].str.cat(parts[1:], sep=" ")
        # pandas takes words such as now for times.
        valid = written.str.contains(r"\d") & written.str.fullmatch(_pattern(form) if form else ISO_8601)
        texts = written.where(valid, "")
        wall = _parsed(texts, form)
        # 24 is a valid minute or day; only as the hour does it end the day.
        late = np.isnat(wall) & (texts.str.count(END_OF_DAY) == 1).to_numpy()
        wall[late] = _parsed(texts[late].str.replace(END_OF_DAY, "00", regex=True), form) + np.timedelta64(1, "D")
        far = (wall < FIRST_DAY) | (wall.astype("datetime64[D]") > LAST_DAY)
        wall[far] = np.datetime64("NaT")
        timestamps: Timestamps = wall
        if zone:
            naive = ["%z" not in form if form else not re.search("[Z+-]", text[10:]) for text in texts]
            timestamps = np.where(naive, self._utc(np.where(naive, wall, np.datetime64("NaT"))), wall)
        said = f"does not follow --timestamp-format {form}" if form else "is not ISO 8601: use --timestamp-format"
        for place in np.flatnonzero(np.isnat(timestamps)):
            why = f"is not within {FIRST_DAY} to {LAST_DAY}" if far[place] else said
            why = why if np.isnat(wall[place]) else f"does not exist in {zone}, where clocks go forward then"
            problems[table.index[place]] = f"timestamp {_shown(written.iloc[place])} {why}"
        return timestamps

    def _utc(self, wall: Timestamps) -> Timestamps:
        """Convert local times to UTC. In a repeated hour, the second pass begins where the times go back."""
        times, zone = pd.DatetimeIndex(wall), self.options.csv_timezone
        utc, second = (
            np.array(times.tz_localize(zone, ambiguous=np.full(len(wall), dst), nonexistent="NaT").tz_convert(None))
            for dst in (True, False)
        )
        twice = ~np.isnat(utc) & (utc != second)
        days = wall.astype("datetime64[D]")
        for day in np.unique(days[twice]):
            places = np.flatnonzero(twice & (days == day))
            times_back, last = self._repeated.get(day, (0, day - 1))
            step = np.diff(wall[places], prepend=last).astype(int)
            # The same time again is the second pass only where an hour has one row.
            back = times_back + np.cumsum((step < 0) | ((step == 0) & (len(places) <= 2)))
            utc[places] = np.where(back > 0, second[places], utc[places])
            # Newest first, the second pass comes first.
            descends = (np.diff(utc[days == day]) < np.timedelta64(0, "us")).any()
            self._repeated[day] = int(back[-1] + 2 * descends), wall[places[-1]]
        return utc

    def _labelled(self, timestamps: Timestamps) -> Timestamps:
        """Return the intervals' starts; bad rows help to find the interval."""
        if self.options.label == "end" and not self.interval and not np.isnat(timestamps).all():
            steps = np.diff(np.unique(timestamps))
            steps, counts = np.unique(steps[steps <= np.timedelta64(1, "D")], return_counts=True)
            # In a .bad file, steps are gaps, as a step that occurs once may be.
            if not len(steps) or counts.max() < 2 or self.name.endswith(".bad"):
                raise FileError(f"{self.name}: --label end needs --interval MINUTES: these rows do not show it")
            self.interval = steps[counts.argmax()]
        return timestamps - self.interval


def look(file: File) -> str:
    """Read a file to its end, and return what it holds."""
    edges, steps, counts = list[pd.DataFrame](), Counter[int](), Counter[str]()
    for columns in file:
        table = pd.DataFrame(columns).set_index("timestamp")
        steps.update(np.diff(pd.concat([*edges[-1:], table]).index.to_numpy()).astype(int).tolist())
        edges += [table[:1], table[-1:]]
        counts["rows"] += len(table)
        counts["missing"] += int(table.isna().to_numpy().sum())
        for each in file.variables:
            outside = (table[each.name] < each.lowest) | (table[each.name] > each.highest)
            counts[f"{each.name} outside {each.lowest} to {each.highest}"] += int(outside.sum())
    # Negative where the file is sorted newest first.
    interval = max((step for step in steps if step), key=steps.__getitem__, default=0)
    counts["gaps"] = sum(steps[step] for step in steps if step * interval > interval**2)
    counts["rows out of order or repeated"] = sum(steps[step] for step in steps if step <= 0)
    told = ", ".join(f"{name}: {number:,}" for name, number in counts.items())
    return f"{pd.concat([edges[0], edges[-1]]).to_string()}\ninterval {abs(interval) / 60e6:g} min, {told}"


def _reader(source: object, **options: object) -> pd.io.parsers.TextFileReader:
    try:
        return pd.read_csv(source, **options)
    except (RuntimeError, AssertionError) as error:
        # Of a zip, the first means a password or an unknown method; of a tar, the second means a folder.
        raise OSError(str(error) or "the archive holds no file") from error


def _encoding(name: str) -> str:
    """Return the encoding that the first bytes of a file show: UTF-16, or else UTF-8."""
    # A pipe cannot be read twice.
    if not Path(name).is_file():
        return "utf-8-sig"
    with Path(name).open("rb") as stream:
        return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _padded(numbers: pd.Series, form: str) -> pd.Series:
    """Restore the leading zeros that numbers have lost: 5 is 00:05 in %H%M. A year lost none, a fraction any."""
    width = 0 if form.startswith(("%Y", "%f")) else len(datetime(2024, 5, 20, tzinfo=UTC).strftime(form))
    return numbers.mask(numbers.str.isdecimal(), numbers.str.zfill(width))


def _numeric(texts: pd.Series, mark: str) -> pd.Series:
    """Return the numbers of texts with this decimal mark, NaN for other texts."""
    points = texts if mark == "." else texts.str.translate(str.maketrans(",.", ".,"))
    return pd.to_numeric(points, errors="coerce").astype(float)


def _check(form: str) -> None:
    """Raise FileError unless the form gives a day, an hour if it gives a time, and each part once."""
    parts = re.findall("%(.)", form)
    said = f"--timestamp-format {form!r}"
    if twice := next((part for part in parts if parts.count(part) > 1), None):
        raise FileError(f"{said} has %{twice} twice: expected each part once")
    if not ({*parts} & {"Y", "y"} and ("j" in parts or ({*parts} & {"m", "b", "B"} and "d" in parts))):
        raise FileError(f"{said} gives no day: expected %Y, %m and %d, or %Y and %j")
    # pandas reads an hour without %p as one before noon, and ignores %p beside %H.
    if {*parts} & set("HIpMSf") and {*parts} & set("HIp") not in ({"H"}, {"I", "p"}):
        raise FileError(f"{said} gives no hour: expected %H, or %I and %p")
    if "Z" in parts:
        raise FileError(f"{said}: %Z is ambiguous: expected %z, or the name and --csv-timezone")


def _pattern(form: str) -> str:
    """Return a pattern that gives numbers without a separator their full width: pandas takes 105 for 10:05 in %H%M."""
    escaped = re.sub(r"(\\\s)+", r"\\s+", re.escape(form))
    numbers = "(?:%[YymdjHIMSf]){2,}"
    full = re.sub(numbers, lambda run: "".join(rf"\d{{{WIDTHS.get(each, 2)}}}" for each in run[0][1::2]), escaped)
    # A fraction without a mark may have lost leading zeros: 5 may be .005.
    full = re.sub("(?<![.,])%f", r"(?:\\d{3}){1,3}", full)
    # Wider patterns take minutes for a long line of separators.
    return "(?i)" + re.sub("%.", r"\\S{1,32}", re.sub("%[YymdjHIMSf]", r"\\d{1,9}", full))


def _parsed(texts: pd.Series, form: str | None) -> Timestamps:
    parsed = pd.to_datetime(texts, format=form or "ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
    wall = np.array(parsed, "datetime64[us]")
    if form and "%j" in form and "%d" not in form:
        # pandas takes day 366 of a common year for the first of the next one.
        summers = pd.DatetimeIndex(_parsed(texts, form.replace("%j", "366")) + np.timedelta64(180, "D"))
        wall[summers.notna() & ~summers.is_leap_year] = np.datetime64("NaT")
    return wall


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == " ":
        line = " ".join(line.split())
    # csv.reader takes ten times as long.
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))


def _shown(said: object, most: int = 40) -> str:
    """Return foreign text cut, and with its control characters escaped."""
    text = str(said)
    return repr(text[:most] + "..." * (len(text) > most))
