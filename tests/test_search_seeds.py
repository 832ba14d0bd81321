from collections import Counter

import numpy as np
import pytest
from search_toy import toy_genome
from tiny import dit_transformer, flux_transformer, pixart_transformer

from festina.errors import FestinaError
from festina.methods import fora
from festina.plan import Plan
from festina.search.genome import Genome
from festina.search.seeds import choose_seeds, first_population, kind_of, seed_pool, spaced
from festina.search.settings import SearchSettings


def _price(plan: Plan) -> int:
    return int(plan.mask().sum())


def _of_kind(genome: Genome, kind: str) -> np.ndarray:
    return np.array([kind_of(site) == kind for site in genome.sites])


PIXART = Genome.of(pixart_transformer(28), 20)
POOL = seed_pool(PIXART)


def test_kinds_follow_the_streams() -> None:
    kinds = [
        [kind_of(site) for site in Genome.of(made, 4).sites] for made in (pixart_transformer(1), dit_transformer(1))
    ]
    assert kinds == [["self-attention", "cross-attention", "feed-forward"], ["self-attention", "feed-forward"]]
    flux = Genome.of(flux_transformer(1, 1), 4)
    assert [kind_of(site) for site in flux.sites] == [
        "self-attention",
        "feed-forward",
        "feed-forward",
        "feed-forward",
        "feed-forward",
        "self-attention",
    ]


def test_every_plan_of_the_pool_is_another_and_none_is_uncached() -> None:
    keys = [plan.key() for plan in POOL]
    assert len(set(keys)) == len(keys)
    assert PIXART.uncached().key() not in keys
    assert set(Counter(plan.method for plan in POOL)) == {"fora", "fora_kind", "gated", "blocks"}


def test_fora_family_equals_the_published_method() -> None:
    denoiser = pixart_transformer(28)
    ours = [plan for plan in POOL if plan.method == "fora"]
    assert [plan.settings["interval"] for plan in ours] == [2, 3, 4, 5, 7, 10, 20]
    assert ours == [fora(denoiser, 20, plan.settings["interval"]) for plan in ours]


def test_fora_on_one_kind_leaves_the_rest_computed() -> None:
    plans = [plan for plan in POOL if plan.method == "fora_kind"]
    wanted = {
        (kind, n) for kind in ("self-attention", "feed-forward", "cross-attention") for n in (2, 3, 4, 5, 7, 10, 20)
    }
    assert {(plan.settings["kind"], plan.settings["interval"]) for plan in plans} == wanted
    for plan in plans:
        chosen = _of_kind(PIXART, plan.settings["kind"])
        assert plan.mask()[:, ~chosen].all()
        on = np.arange(20) % plan.settings["interval"] == 0
        assert (plan.mask()[:, chosen] == on[:, None]).all()


def test_gated_plans_stop_computing_cross_attention_at_the_gate() -> None:
    cross = _of_kind(PIXART, "cross-attention")
    plans = [plan for plan in POOL if plan.method == "gated"]
    assert {15, 10} <= {plan.settings["gate"] for plan in plans}
    for plan in plans:
        gate, interval = plan.settings["gate"], plan.settings["interval"]
        on = (np.arange(20) % interval == 0) & (np.arange(20) < gate)
        assert (plan.mask()[:, cross] == on[:, None]).all()
        assert plan.mask()[:, ~cross].all()


def test_block_plans_reuse_one_kind_in_k_blocks_on_m_steps() -> None:
    plans = [plan for plan in POOL if plan.method == "blocks"]
    assert plans
    for plan in plans:
        reused = ~plan.mask()
        chosen = _of_kind(PIXART, plan.settings["kind"])
        blocks = sorted(
            {int(PIXART.sites[site].block.rpartition(".")[2]) for site in np.flatnonzero(reused.any(axis=0))}
        )
        steps = np.flatnonzero(reused.any(axis=1))
        assert not reused[:, ~chosen].any()
        assert (len(blocks), len(steps)) == (plan.settings["blocks"], plan.settings["steps"])
        assert reused.sum() == len(blocks) * len(steps)
        if plan.settings["layout"] == "middle":
            assert blocks == list(range((28 - len(blocks)) // 2, (28 - len(blocks)) // 2 + len(blocks)))
        else:
            assert tuple(blocks) == spaced(28, len(blocks))


@pytest.mark.parametrize(
    ("places", "count", "found"),
    [(10, 1, (5,)), (10, 2, (2, 7)), (9, 3, (1, 4, 7)), (4, 4, (0, 1, 2, 3)), (5, 2, (1, 3))],
)
def test_spaced_positions_are_the_middles_of_equal_parts(places: int, count: int, found: tuple[int, ...]) -> None:
    assert spaced(places, count) == found


def test_models_without_cross_attention_have_three_families_of_sites() -> None:
    genome = Genome.of(flux_transformer(2, 3), 8)
    pool = seed_pool(genome)
    assert "gated" not in {plan.method for plan in pool}
    assert {plan.settings["kind"] for plan in pool if plan.method == "fora_kind"} == {"self-attention", "feed-forward"}


def test_chosen_seeds_hold_the_fora_family_and_span_the_costs() -> None:
    chosen = choose_seeds(POOL, 72, _price)
    assert len({plan.key() for plan in chosen}) == 72
    assert [plan.settings["interval"] for plan in chosen if plan.method == "fora"] == [2, 3, 4, 5, 7, 10, 20]
    others = sorted(_price(plan) for plan in POOL if plan.method != "fora")
    costs = sorted(_price(plan) for plan in chosen if plan.method != "fora")
    assert costs == [others[place] for place in np.linspace(0, len(others) - 1, 65).round().astype(int)]


def test_few_places_are_spread_over_the_fora_family() -> None:
    assert [plan.settings["interval"] for plan in choose_seeds(POOL, 3, _price)] == [20, 5, 2]


@pytest.mark.parametrize("family", ["heuristics", "random"])
def test_first_population_is_unique_and_feasible(family: str) -> None:
    first = first_population(PIXART, SearchSettings(seeds=family), _price)
    assert first.shape == (72, PIXART.length)
    assert len(np.unique(first, axis=0)) == 72
    assert not first.all(axis=1).any()


def test_random_family_is_fair_coins() -> None:
    first = first_population(PIXART, SearchSettings(seeds="random"), _price)
    assert first.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(first.size))
    other = first_population(PIXART, SearchSettings(seeds="random", seed=1), _price)
    assert not np.array_equal(first, other)


def test_a_small_pool_is_filled_up_and_start_plans_come_first() -> None:
    genome = toy_genome()
    pool = seed_pool(genome)
    start = genome.decode(np.array([True, True, False, False] * 3))
    first = first_population(genome, SearchSettings(population=len(pool) + 20), _price, start=[start, start])
    rows = {row.tobytes() for row in first}
    assert np.array_equal(first[0], genome.encode(start))
    assert len(rows) == len(pool) + 20
    assert rows >= {genome.encode(plan).tobytes() for plan in pool}


def test_min_difference_holds_for_every_seed() -> None:
    first = first_population(PIXART, SearchSettings(min_difference=300), _price)
    assert (~first).sum(axis=1).min() >= 300


def test_more_places_than_candidates_is_an_error() -> None:
    genome = toy_genome(steps=2)
    assert genome.length == 4
    assert len(first_population(genome, SearchSettings(population=15), _price)) == 15
    with pytest.raises(FestinaError, match="only 15 distinct feasible"):
        first_population(genome, SearchSettings(population=16), _price)
