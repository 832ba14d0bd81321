from pathlib import Path

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.operators.crossover.pntx import PointCrossover
from pymoo.operators.mutation.bitflip import BitflipMutation
from search_toy import SETTINGS, ToyEvaluator, known_front, told, toy_genome

from festina.errors import FestinaError
from festina.search.archive import Archive
from festina.search.engine import nsga2, search
from festina.search.front import Front
from festina.search.genome import Genome
from festina.search.settings import ECAD_MUTATION, WORKING_MUTATION, Mutation, SearchSettings


def _operators(mutation: Mutation, steps: int = 21, blocks: int = 42):
    """NSGA-II on 20 free steps x 84 sites = 1680 genes, ECAD's number for PixArt."""
    genome = toy_genome(steps, blocks)
    first = np.random.default_rng(0).random((4, genome.length)) < 0.5
    return nsga2(genome, SearchSettings(population=4, mutation=mutation), first), genome


def _flips(mutation: Mutation, children: int = 20_000) -> np.ndarray:
    algorithm, genome = _operators(mutation)
    assert genome.length == 1680
    generator = np.random.default_rng(0)
    counts = []
    for _ in range(children // 1000):
        before = np.zeros((1000, genome.length), dtype=bool)
        after = algorithm.mating.mutation.do(algorithm.problem, Population.new(X=before), random_state=generator)
        counts.append((after.get("X") != before).sum(axis=1))
    return np.concatenate(counts)


def test_ecad_mutation_flips_a_twentieth_of_a_bit_per_child() -> None:
    flips = _flips(ECAD_MUTATION)
    # A count is 0 with probability 0.95, else Poisson(1): its variance is 0.05 x 2 - 0.05^2; bounds at 4 sigma.
    assert flips.mean() == pytest.approx(0.05, abs=4 * np.sqrt(0.0975 / flips.size))
    assert (flips > 0).mean() == pytest.approx(0.05 * (1 - np.exp(-1)), abs=4 * np.sqrt(0.0306 / flips.size))


def test_working_mutation_flips_several_bits_of_most_children() -> None:
    flips = _flips(WORKING_MUTATION, children=10_000)
    assert flips.mean() == pytest.approx(1.8, abs=4 * np.sqrt(2.16 / flips.size))
    assert (flips > 0).mean() == pytest.approx(0.9 * (1 - np.exp(-2)), abs=4 * np.sqrt(0.173 / flips.size))


def test_ecad_mutation_is_what_pymoo_does_without_a_rate_per_bit() -> None:
    algorithm, genome = _operators(ECAD_MUTATION)
    before = np.random.default_rng(1).random((500, genome.length)) < 0.5
    ours, literal = (
        operator.do(algorithm.problem, Population.new(X=before.copy()), random_state=np.random.default_rng(2)).get("X")
        for operator in (algorithm.mating.mutation, BitflipMutation(prob=0.05))
    )
    assert np.array_equal(ours, literal)
    assert not np.array_equal(ours, before)


def test_crossover_cuts_nine_in_ten_couples_at_exactly_four_points() -> None:
    algorithm, genome = _operators(WORKING_MUTATION)
    couples = 1000
    parents = Population.new(X=np.repeat([[True], [False]], genome.length, axis=1))
    pairs = np.tile([0, 1], (couples, 1))
    children = algorithm.mating.crossover.do(
        algorithm.problem, parents, parents=pairs, random_state=np.random.default_rng(0)
    ).get("X")
    cuts = (np.diff(children.astype(int), axis=1) != 0).sum(axis=1)
    assert len(cuts) == 2 * couples
    assert set(cuts.tolist()) == {0, 4}
    assert (cuts == 4).mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / couples))
    assert isinstance(algorithm.mating.crossover, PointCrossover)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mutation(1.5, 1), "probability"),
        (lambda: Mutation(0.5, 0), "above 0"),
        (lambda: SearchSettings(population=1), "population"),
        (lambda: SearchSettings(generations=0), "generations"),
        (lambda: SearchSettings(crossover_points=0), "crossover_points"),
        (lambda: SearchSettings(crossover_probability=1.1), "crossover"),
        (lambda: SearchSettings(seed=-1), "seed"),
        (lambda: SearchSettings(min_difference=-1), "min_difference"),
        (lambda: SearchSettings(seeds="elephants"), "heuristics, random"),
    ],
)
def test_settings_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(FestinaError, match=words):
        make()


def _run(genome: Genome, folder: Path, settings: SearchSettings, **more) -> tuple[Front, list[str], list[str]]:
    with Archive(folder / "archive.sqlite") as archive:
        # These tests do not pull the plug, and waiting for the disk takes most of their time.
        archive._database.execute("PRAGMA synchronous = OFF")
        seen, unseen = (ToyEvaluator(genome, archive, name) for name in ("search", "held out"))
        front = search(seen, unseen, genome, settings, **more)
    return front, seen.made, unseen.made


def test_finds_the_whole_known_front_and_leaves_the_uncached_plan_out(tmp_path: Path) -> None:
    genome = toy_genome()
    assert genome.length == 12
    front, made, rescored = _run(genome, tmp_path, SearchSettings(population=40, generations=60))
    assert [point.plan.key() for point in front.points] == known_front(genome)
    assert front.uncached.plan.key() == genome.uncached().key()
    assert genome.uncached().key() not in [point.plan.key() for point in front.points]
    assert len(made) == len(set(made))
    assert sorted(rescored) == sorted([*known_front(genome), genome.uncached().key()])


def test_without_the_constraint_the_uncached_plan_is_on_the_front(tmp_path: Path) -> None:
    genome = toy_genome()
    front, _, _ = _run(genome, tmp_path, SearchSettings(population=40, generations=60, min_difference=0))
    assert [point.plan.key() for point in front.points] == [*known_front(genome), genome.uncached().key()]


def test_min_difference_counts_reused_genes(tmp_path: Path) -> None:
    genome = toy_genome()
    front, _, _ = _run(genome, tmp_path, SearchSettings(population=40, generations=60, min_difference=5))
    assert [point.plan.key() for point in front.points] == known_front(genome)[:8]


def test_same_settings_same_candidates_other_seed_others(tmp_path: Path) -> None:
    genome = toy_genome(steps=6)
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        (tmp_path / str(number)).mkdir()
        runs.append(_run(genome, tmp_path / str(number), SearchSettings(population=10, generations=6, seed=seed)))
    assert runs[0][1] == runs[1][1]
    assert told(runs[0][0]) == told(runs[1][0])
    assert runs[0][1] != runs[2][1]


def test_a_second_run_evaluates_nothing(tmp_path: Path) -> None:
    genome = toy_genome()
    first, made, _ = _run(genome, tmp_path, SETTINGS)
    second, again, held_again = _run(genome, tmp_path, SETTINGS)
    assert made
    assert again == held_again == []
    assert told(first) == told(second)


def test_more_generations_continue_the_same_search(tmp_path: Path) -> None:
    genome = toy_genome(steps=6)
    _, made, _ = _run(genome, tmp_path, SearchSettings(population=10, generations=3))
    _, more, _ = _run(genome, tmp_path, SearchSettings(population=10, generations=6))
    (tmp_path / "whole").mkdir()
    _, whole, _ = _run(genome, tmp_path / "whole", SearchSettings(population=10, generations=6))
    assert made + more == whole


def test_start_plans_are_evaluated_first_and_progress_ends_complete(tmp_path: Path) -> None:
    genome = toy_genome()
    chosen = genome.decode(np.arange(genome.length) % 3 == 0)
    reports: list[tuple[int, int, str]] = []
    settings = SearchSettings(population=8, generations=3)
    front, made, _ = _run(
        genome,
        tmp_path,
        settings,
        start=[chosen],
        progress=lambda done, total, word: reports.append((done, total, word)),
    )
    assert made[:2] == [genome.uncached().key(), chosen.key()]
    counts = [done for done, _, _ in reports]
    assert counts == sorted(counts)
    assert reports[0] == (1, 24, "generation 1 of 3")
    assert reports[-1][0] == reports[-1][1] == 24 + len(front.points)


def test_stop_ends_the_search_with_what_there_is(tmp_path: Path) -> None:
    genome = toy_genome()
    answers = iter([False] * 4 + [True] * 1000)
    settings = SearchSettings(population=8, generations=50)
    front, made, rescored = _run(genome, tmp_path, settings, stop=lambda: next(answers))
    assert len(made) == 1 + 5
    assert {point.plan.key() for point in front.points} <= set(made[1:])
    assert len(rescored) == 1 + len(front.points)


def test_interrupt_passes_through_and_the_archive_stays(tmp_path: Path) -> None:
    genome = toy_genome()

    def interrupt(done: int, total: int, message: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(genome, tmp_path, SETTINGS, progress=interrupt)
    (tmp_path / "whole").mkdir()
    whole = _run(genome, tmp_path / "whole", SETTINGS)
    resumed = _run(genome, tmp_path, SETTINGS)
    assert told(resumed[0]) == told(whole[0])
    # The uncached plan on both workloads and seven candidates were there already.
    assert len(resumed[1]) == len(whole[1]) - 8


def test_front_plans_carry_settings_and_held_out_figures(tmp_path: Path) -> None:
    front, _, _ = _run(toy_genome(), tmp_path, SETTINGS)
    plan = front.points[2].plan
    assert plan.method == "search"
    assert plan.settings["mutation"] == {"individual": 0.9, "flips": 2.0}
    assert plan.measured[0].name == "reward"
    assert plan.measured[0].value == front.points[2].held_out.reward
    assert plan.measured[0].conditions == "toy, held out"


def test_a_genome_too_short_for_the_crossover_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FestinaError, match="crossover points"):
        _run(toy_genome(steps=2), tmp_path, SearchSettings(population=4))
