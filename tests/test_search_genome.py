import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_toy import toy_genome
from tiny import flux_transformer, pixart_transformer

from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.genome import Genome
from festina.sites import block_sites, component_sites

BITS = st.lists(st.booleans(), min_size=12, max_size=12).map(np.array)


@given(BITS, BITS)
def test_genes_and_canonical_plans_are_one_to_one(one: np.ndarray, other: np.ndarray) -> None:
    genome = toy_genome()
    plan = genome.decode(one)
    assert plan == plan.canonical()
    assert np.array_equal(genome.encode(plan), one)
    assert (plan.key() == genome.decode(other).key()) == np.array_equal(one, other)
    assert genome.difference(one) == int((plan.mask() != genome.uncached().mask()).sum())


def test_genes_run_by_step_then_by_site() -> None:
    genome = Genome.of(pixart_transformer(2), 3)
    bits = np.zeros(genome.length, dtype=bool)
    bits[6 + 1] = True
    plan = genome.decode(bits)
    assert plan.computed_steps("transformer_blocks.0.attn2") == (0, 2)
    assert plan.computed_steps("transformer_blocks.1.ff") == (0,)


@pytest.mark.parametrize(("denoiser", "genes"), [(pixart_transformer(28), 1680), (flux_transformer(19, 38), 3420)])
def test_lengths_are_ecads_less_the_first_step(denoiser, genes: int) -> None:
    genome = Genome.of(denoiser, 20)
    assert genome.length + len(genome.sites) == genes


def test_the_first_step_of_a_plan_does_not_matter() -> None:
    genome = toy_genome()
    mask = np.ones((4, 4), dtype=bool)
    mask[0] = False
    assert genome.encode(Plan.from_mask("Toy", genome.names, mask)).all()


def test_plans_that_do_not_fit_are_refused() -> None:
    genome = toy_genome()
    with pytest.raises(FestinaError, match="does not fit"):
        genome.encode(Plan.computing_all("Other", genome.names, 4))
    with pytest.raises(FestinaError, match=r"resample\(4\)"):
        genome.encode(Plan.computing_all("Toy", genome.names, 5))
    rows = ["CCCC", "CCCC", "1111", "CCCC"]
    steps = Plan.computing_all("Toy", genome.names, 4).steps
    forecast = Plan("Toy", genome.names, tuple(type(s)(s.noise, row) for s, row in zip(steps, rows, strict=True)))
    with pytest.raises(FestinaError, match="knows compute and reuse only"):
        genome.encode(forecast)


def test_nested_sites_and_empty_searches_are_refused() -> None:
    denoiser = pixart_transformer(2)
    with pytest.raises(FestinaError, match="lies within"):
        Genome("PixArtTransformer2DModel", (*block_sites(denoiser), *component_sites(denoiser)), 4)
    with pytest.raises(FestinaError, match="nothing to search"):
        Genome.of(denoiser, 1)
