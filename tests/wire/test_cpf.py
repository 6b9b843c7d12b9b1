"""The CPF is exact, bounded, and 1 only for a home in balance."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.cpf import Q16, cpf_q16, eligible, turnover

SLOT = st.tuples(st.integers(-10_000, 10_000), st.integers(0, 10_000))


def test_a_balanced_home_has_cpf_one():
    assert cpf_q16([0, 0], [500, 700], 1000) == Q16


def test_a_vacant_home_has_cpf_zero():
    assert cpf_q16([0, 0], [0, 0], 1000) == 0


def test_the_formula_by_hand():
    # P = 300, C = 500, I = 200, E = 500: exp(-0.4) = 0.670320046…
    assert cpf_q16([200], [300], 1000) == math.floor(65536 * 0.6703200460356393)
    assert cpf_q16([200], [300], 2500) == math.floor(65536 * math.exp(-1.0))


def test_eligibility_needs_both_turnover_and_production():
    assert eligible([0], [200], min_energy_wh=200, min_production_wh=100)
    assert not eligible([500], [99], min_energy_wh=200, min_production_wh=100)
    assert not eligible([0], [199], min_energy_wh=200, min_production_wh=100)


def test_sequences_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        cpf_q16([0], [1, 2], 1000)


@given(st.lists(SLOT, max_size=12), st.integers(0, 10_000))
def test_close_to_the_real_number_and_inside_its_range(slots, kappa_milli):
    nets, generations = [net for net, _ in slots], [made for _, made in slots]
    value = cpf_q16(nets, generations, kappa_milli)
    assert 0 <= value <= Q16
    energy = turnover(nets, generations)
    if energy:
        exact = Q16 * math.exp(-kappa_milli / 1000 * sum(map(abs, nets)) / energy)
        assert abs(value - exact) <= 1


@given(st.lists(SLOT, min_size=1, max_size=8), st.integers(1, 20))
def test_changing_the_unit_changes_nothing(slots, factor):
    nets, generations = [net for net, _ in slots], [made for _, made in slots]
    scaled = cpf_q16([n * factor for n in nets], [g * factor for g in generations], 1000)
    assert scaled == cpf_q16(nets, generations, 1000)
