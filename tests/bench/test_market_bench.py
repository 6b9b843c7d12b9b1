"""The market benchmark measures what it says, and never lets a clearing trade too much."""

import json
import sys

import pytest

from bench import peers
from bench.market import (
    CROSSING,
    NUMPY,
    UNIFORM,
    Book,
    Figure,
    aims,
    columns,
    exponent,
    main,
    measure,
    numpy_volume,
    show,
)
from market import clear


def test_every_auction_is_measured_on_every_size(capsys):
    figures = measure((100, 300), lambda _: None)
    kinds = {one.what for one in figures}
    assert {NUMPY, CROSSING, UNIFORM, "order book", "reverse auction", "forward auction"} <= kinds
    assert all(one.seconds > 0 for one in figures)
    assert {(one.what, one.orders) for one in figures} == {
        (k, n) for k in kinds for n in (100, 300)
    }
    show(figures)
    assert "pay-as-bid" in capsys.readouterr().out


@pytest.mark.parametrize("size", [2, 10, 1000, 4000])
def test_numpys_volume_is_the_volume_of_the_clearing(size):
    book = Book(size)
    assert numpy_volume(columns(book)) == clear(book.bids, book.offers).traded_wh


def test_the_exponent_is_the_slope_of_the_logarithms():
    line = [Figure("x", n, 1e-6 * n**1.5) for n in (100, 10_000, 100_000, 1_000_000)]
    assert exponent(line) == pytest.approx(1.5)
    assert exponent(line[:2]) is None


def test_the_aims_are_read_off_the_figures():
    figures = [
        Figure(what, n, s * n)
        for n in (10_000, 100_000, 1_000_000)
        for what, s in ((NUMPY, 1e-6), (CROSSING, 1.5e-6), (UNIFORM, 4e-6))
    ]
    found = {name: (round(value, 3), value <= limit) for name, value, limit in aims(figures)}
    assert found["crossing over numpy, 10,000 orders"] == (1.5, True)
    assert found["double auction of 1,000,000 orders, s"] == (4.0, False)
    assert found["double auction, exponent"] == (1.0, True)


def test_without_pymarket_the_rest_is_measured(monkeypatch, capsys, tmp_path):
    """No index can be reached: the bench says so and goes on."""
    monkeypatch.setattr(peers, "install", lambda _folder: (None, "no index"))
    monkeypatch.setattr("bench.market.SHORT", (100,))
    monkeypatch.setattr(sys, "argv", ["bench", "--json", "--short", "--cache", str(tmp_path)])
    main()
    said = capsys.readouterr()
    assert "could not be installed and is left out: no index" in said.err
    assert {row["orders"] for row in json.loads(said.out)["figures"]} == {100}


def test_an_environment_that_cannot_be_made_is_said_and_not_raised(tmp_path):
    (tmp_path / "file").write_text("")
    python, why = peers.install(tmp_path / "file" / "below")
    assert python is None and why
