"""The trade benchmark closes real trades, and its histogram counts each of them once."""

import math
import xml.etree.ElementTree as ET

import pytest

from bench.trade import Result, run
from bench.trade_plot import bins, draw, text


@pytest.mark.slow
def test_every_trade_of_a_short_run_closes(tmp_path):
    result = run(12, 10, "embedded", tmp_path, lambda _: None)
    assert (len(result.closed_ms), result.failed, result.same) == (12, 0, True)
    pairs = zip(result.posted_ms, result.closed_ms, strict=True)
    assert all(0 < heard < closed for heard, closed in pairs)


def test_a_trade_that_never_closed_is_not_left_out_of_the_percentiles():
    result = Result("b", 1, 1.0, 4, [1.0, 3.0, 2.0], [0.5, 1.0, 1.0], 1, True)
    assert (result.percentile_ms(50), result.percentile_ms(75)) == (2.0, 3.0)
    assert result.percentile_ms(99) == math.inf


@pytest.mark.parametrize(
    "times", [[0.0], [1.0, 19.9, 20.0], [5.0] * 7 + [38_000.0], [10.0**7, 1.0]]
)
def test_bins_are_even_and_count_everything_once(times):
    rows = bins(times)
    assert sum(count for _, _, count in rows) == len(times) and len(rows) <= 21
    for low, high, count in rows:
        assert count == sum(low <= each < high for each in times)
    assert len(text(times).splitlines()) == len(rows)


def test_the_picture_is_well_formed_with_and_without_trades():
    for times in ([], [100.0, 150.0, 390.0]):
        root = ET.fromstring(draw(times, {"p50": 150.0, "p99": math.inf}))
        assert root.tag.endswith("svg")
