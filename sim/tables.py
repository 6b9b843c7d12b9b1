"""
Reading CSV files of measured data, strictly.

What is wrong is said in one line with file, line, column and remedy, as `wire.errors.ConfigError`:
a profile with a hole in it would otherwise look like a quiet house.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from wire.errors import ConfigError

FIRST_ROW_LINE = 2


@dataclass(frozen=True, slots=True)
class Table:
    """The wanted columns of one file, as numbers; row k stands on line k + 2."""

    path: Path
    columns: dict[str, list[float]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def wrong(self, row: int, column: str, what: str) -> ConfigError:
        """The error to raise about one value."""
        return at(self.path, row + FIRST_ROW_LINE, column, what)


def read_table(path: Path, wanted: dict[str, str]) -> Table:
    """
    Read columns of a CSV file with a header line.

    Args:
        wanted: column name → its meaning and unit, for the error message

    Raises:
        ConfigError: no such file, a column missing, a row too short or too long, or a value that is
            not a number ≥ 0.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not lines:
        raise ConfigError(f"{path}: empty; the first line names the columns")
    header, rows = lines[0], lines[1:]
    columns: dict[str, list[float]] = {}
    for column, meaning in wanted.items():
        if column not in header:
            raise at(path, 1, column, f"is missing; it holds {meaning}")
        columns[column] = []
    places = [(column, header.index(column)) for column in wanted]
    for number, row in enumerate(rows, FIRST_ROW_LINE):
        if len(row) != len(header):
            raise ConfigError(
                f"{path}, line {number}: {len(row)} fields, but the header names {len(header)}"
            )
        for column, place in places:
            columns[column].append(_number(path, number, column, row[place], wanted[column]))
    if not rows:
        raise ConfigError(f"{path}: has a header but no rows")
    return Table(path, columns)


def at(path: Path, line: int, column: str, what: str) -> ConfigError:
    """A ConfigError about one place in a file."""
    return ConfigError(f"{path}, line {line}, column {column!r}: {what}")


def _number(path: Path, line: int, column: str, text: str, meaning: str) -> float:
    try:
        value = float(text)
    except ValueError:
        shown = text[:40]
        raise at(path, line, column, f"{shown!r} is not a number; write {meaning}") from None
    if not math.isfinite(value):
        raise at(path, line, column, f"{text} is not a finite number; fill the gap or drop the day")
    if value < 0:
        raise at(path, line, column, f"{text} is negative; write {meaning}, at least 0")
    return value
