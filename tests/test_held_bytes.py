"""Bytes the store holds: hand-worked plans, real models, and a store played through visit by visit."""

from dataclasses import replace

import numpy as np
import pytest
from calls import Shape, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost import FLUX_256, PIXART_256, flux_dev, fora, pixart_alpha, plan_of
from tiny import flux_transformer, pixart_transformer

from festina.cost import held_bytes, values_held
from festina.errors import FestinaError
from festina.sites import component_sites

PAIR = ("transformer_blocks.0.attn1", "transformer_blocks.0.ff")


@pytest.mark.parametrize(
    ("rows", "held"),
    [
        (("CC", "CC"), [[0, 0], [0, 0]]),
        (("CC", "RC", "RC", "CC"), [[1, 0], [1, 0], [0, 0], [0, 0]]),
        (("CC", "RR"), [[1, 1], [0, 0]]),
        # A forecast of order 1 reads the two last computed values; the first of them waits through steps 1 and 2.
        (("CC", "RC", "CC", "1C", "1C"), [[1, 0], [1, 0], [2, 0], [2, 0], [0, 0]]),
        # A skip reads nothing, but what comes after it may.
        (("CC", "SC", "RC", "SC"), [[1, 0], [1, 0], [0, 0], [0, 0]]),
        (("CC", "SC"), [[0, 0], [0, 0]]),
    ],
)
def test_values_are_held_from_their_computation_to_their_last_read(rows, held):
    assert values_held(plan_of(PAIR, *rows)).tolist() == held


def test_a_site_within_a_served_block_reads_nothing():
    names = ("transformer_blocks.0:residual", "transformer_blocks.0.attn1")
    assert values_held(plan_of(names, "CC", "RR", "CC")).tolist() == [[1, 0], [0, 0], [0, 0]]
    assert values_held(plan_of(names, "CC", "RR", "CR")).tolist() == [[1, 1], [0, 1], [0, 0]]


def test_held_bytes_by_hand():
    model = pixart_transformer()  # 16 wide
    one = 2 * 16 * 16 * 4  # rows x tokens x width x bytes
    shape = Shape(2, 16, 5)
    # Step 1: attn1 is read for the last time and freed before ff stores its value.
    assert held_bytes(plan_of(PAIR, "CC", "RC", "CR"), model, traced(model, shape), 4) == one
    assert held_bytes(plan_of(PAIR, "CC", "CR", "RC"), model, traced(model, shape), 4) == 2 * one
    assert held_bytes(plan_of(PAIR, "CC", "RR"), model, traced(model, shape), 4) == 2 * one
    assert held_bytes(plan_of(PAIR, "CC", "CC"), model, traced(model, shape), 4) == 0
    # The order of the plan's sites is not the order of execution.
    assert held_bytes(plan_of(PAIR[::-1], "CC", "CR", "RC"), model, traced(model, shape), 4) == one


def test_held_bytes_of_branches():
    model, shape = pixart_transformer(), Shape(1, 16, 5)
    one = 16 * 16 * 4
    # The second branch still holds attn1 while the first stores ff.
    plan = plan_of(PAIR, "CC", "RC", "CR")
    assert [held_bytes(plan, model, traced(model, shape), 4, branches=n) for n in (1, 2, 3)] == [one, 2 * one, 3 * one]


def test_held_bytes_of_flux_streams():
    model, shape = flux_transformer(), Shape(2, 6, 5)  # 32 wide

    def held(name):
        return held_bytes(
            plan_of([name], "C", "R", denoiser="FluxTransformer2DModel"), model, traced(model, shape), 1
        ) / (2 * 32)

    assert held("transformer_blocks.0.attn") == 6 + 5
    assert held("transformer_blocks.0.ff") == 6
    assert held("transformer_blocks.0.ff_context") == 5
    assert held("single_transformer_blocks.0.attn") == 11
    assert held("single_transformer_blocks.0.proj_mlp") == 4 * 11
    assert held("single_transformer_blocks.0.proj_out") == 11
    assert held("transformer_blocks.1:residual") == 11
    assert held("single_transformer_blocks.1:residual") == 11


def test_held_bytes_of_real_models():
    pixart, flux = pixart_alpha(), flux_dev()
    # Every component of every block held at once: 84 outputs 1152 wide; 19 x 2 + 38 x 6 outputs 3072 wide.
    assert held_bytes(fora(pixart, 20), pixart, traced(pixart, PIXART_256), 2) == 84 * 2 * 256 * 1152 * 2
    assert held_bytes(fora(flux, 20), flux, traced(flux, FLUX_256), 2) == (19 * 2 + 38 * 6) * 2 * 768 * 3072 * 2


def test_held_bytes_refuses_another_model():
    plan, model = plan_of(["transformer_blocks.7.ff"], "C", "R"), pixart_transformer()
    with pytest.raises(FestinaError, match="not in this"):
        held_bytes(plan, model, traced(model, Shape(1, 16, 5)), 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("CR", min_size=9, max_size=9), min_size=1, max_size=6), st.integers(1, 3))
def test_held_bytes_follows_a_simulated_store(rows, branches):
    """A store played through visit by visit, from the actions alone."""
    model, shape = pixart_transformer(), Shape(1, 16, 5)
    plan = plan_of([site.name for site in component_sites(model)], *rows)
    table = plan.canonical().table()
    following = np.vstack([table[1:], np.full((1, 9), "C")])
    held, peak = set(), 0
    for step in range(len(rows)):
        for branch in range(branches):
            for site in range(9):
                if table[step, site] == "R":
                    assert (branch, site) in held
                if following[step, site] == "R":
                    held.add((branch, site))
                else:
                    held.discard((branch, site))
                peak = max(peak, len(held))
    assert not held
    assert held_bytes(plan, model, traced(model, shape), 4, branches) == peak * 16 * 16 * 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("CRS123", min_size=2, max_size=2), min_size=1, max_size=8))
def test_the_store_ends_empty(rows):
    held = values_held(plan_of(PAIR, *rows))
    assert not held[-1].any()
    assert (held >= 0).all()


def test_equivalent_plans_hold_the_same():
    plan = plan_of(PAIR, "CC", "1R", "CC", "3R")
    assert np.array_equal(values_held(plan), values_held(replace(plan.canonical(), method="other")))
