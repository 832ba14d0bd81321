"""Methods that need a calibration: their rules against straightforward loops, and the plans they make."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from magcache_ratios import PUBLISHED
from pipelines import unets
from tiny import PROMPT, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import Calibration, FestinaError, Plan, calibrate
from festina.calibration.record import LAGS, MEASURES, BranchRecord
from festina.methods import cachequant, fit_curve, magcache, resample_ratios, smoothcache, teacache
from festina.methods.cachequant import group_starts
from festina.methods.magcache import computed_steps as magcache_steps
from festina.methods.smoothcache import computed_steps as smoothcache_steps
from festina.methods.teacache import PUBLISHED as PUBLISHED_CURVES
from festina.sites import component_sites, stack_runs

STEPS = 6
PIXART = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline()


@pytest.fixture(scope="module")
def calibration(pipe):
    return calibrate(pipe, [PROMPT, "a red square"], STEPS, guidance=4.5, call=PIXART)


def made_up(changes=(), steps=STEPS, **others):
    """A calibration of the tiny PixArt transformer with numbers of one's own."""
    denoiser = pixart_transformer()
    sites = tuple(site.name for site in component_sites(denoiser))
    record = BranchRecord(others.get("lags", {}), others.get("magnitudes", ()), changes, others.get("distances", ()))
    has = zip(MEASURES, (record.lags, record.magnitudes, record.changes, record.distances), strict=True)
    return Calibration(
        "PixArtTransformer2DModel",
        sites,
        stack_runs(denoiser),
        "DPMSolverMultistepScheduler",
        steps,
        None,
        {},
        tuple(name for name, there in has if there),
        (("a", 0),) * max(1, len(changes)),
        {"call#0": record},
    )


class TestSmoothCache:
    def test_the_shipped_list_of_50_steps(self):
        """What computes in the list released for DiT-XL with 50 steps and the threshold 0.18, from errors that make it
        so: the first step is reused three times, the next two twice, all others once."""
        computed = [0, 4, 7, 10, *range(12, 49, 2), 49]
        errors = np.full((LAGS, 50), 0.5)
        for source, following in itertools.pairwise(computed[:-1]):
            errors[following - source - 2, source] = 0.18
        errors[0, 48] = 0.1
        assert np.flatnonzero(smoothcache_steps(errors, 0.18)).tolist() == computed
        assert len(computed) == 24

    def test_equals_a_plain_loop(self):
        random = np.random.default_rng(0)
        for _ in range(200):
            steps, lags = int(random.integers(2, 30)), int(random.integers(1, LAGS + 1))
            errors = random.random((lags, steps))
            for lag in range(1, lags + 1):
                errors[lag - 1, steps - lag :] = np.nan
            threshold = float(random.random())
            wanted = [False] * steps
            step = 0
            while step < steps:
                wanted[step] = True
                for lag in range(lags, 0, -1):
                    if step + lag < steps and errors[lag - 1, step] <= threshold:
                        step += lag
                        break
                step += 1
            wanted[0] = wanted[-1] = True
            assert smoothcache_steps(errors, threshold).tolist() == wanted

    def test_only_the_far_end_of_a_lag_counts(self):
        errors = np.full((LAGS, 8), np.nan)
        errors[:, 0] = (0.9, 0.9, 0.1)
        assert np.flatnonzero(smoothcache_steps(errors, 0.1)).tolist() == [0, 4, 5, 6, 7]

    def test_a_plan_has_one_schedule_per_component(self, pipe, calibration):
        groups = {}
        for site in component_sites(pipe.transformer):
            groups.setdefault(site.group, []).append(site.name)
        means = {group: np.nanmedian(calibration.lag_errors(names)) for group, names in groups.items()}
        threshold = float(np.median(list(means.values())))
        plan = smoothcache(pipe, STEPS, calibration, threshold)
        for names in groups.values():
            wanted = np.flatnonzero(smoothcache_steps(calibration.lag_errors(names), threshold)).tolist()
            assert [list(plan.computed_steps(name)) for name in names] == [wanted] * len(names)
        assert 0 < (~plan.mask()).sum() < plan.mask().size
        assert len({plan.computed_steps(names[0]) for names in groups.values()}) > 1
        assert plan.settings["calibration"]["pictures"] == 2
        assert Plan.from_json(plan.to_json()) == plan
        with festina.accelerate(pipe, plan) as run:
            assert generate(pipe, steps=STEPS).isfinite().all()
            assert run.report().macs < run.report().macs_uncached

    def test_neutral_and_largest_threshold(self, pipe, calibration):
        plan = smoothcache(pipe, STEPS, calibration, 0.0)
        assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, STEPS).key()
        plain = generate(pipe, steps=STEPS)
        with festina.accelerate(pipe, plan):
            assert torch.equal(generate(pipe, steps=STEPS), plain)
        for longest, computed in ((1, (0, 2, 4, 5)), (2, (0, 3, 5)), (3, (0, 4, 5))):
            assert smoothcache(pipe, STEPS, calibration, 1e9, longest).computed_steps() == computed

    def test_a_unet(self):
        sd = unets.build_sd2()
        found = calibrate(sd, [PROMPT], 4, guidance=5.0, call={"height": 64, "width": 64}, measures=["lags"])
        assert smoothcache(sd, 4, found, 1e9).computed_steps() == (0, 3)

    @pytest.mark.parametrize("knobs", [{"threshold": -1.0}, {"threshold": math.nan}, {"longest": 0}, {"longest": 4}])
    def test_knobs(self, pipe, calibration, knobs):
        with pytest.raises(FestinaError, match="wanted a"):
            smoothcache(pipe, STEPS, calibration, **{"threshold": 0.1, **knobs})


class TestMagCache:
    def test_equals_a_plain_loop(self):
        """The rule as published: one product, one sum and one counter since the last computed step."""
        random = np.random.default_rng(1)
        for _ in range(200):
            steps = int(random.integers(2, 40))
            ratios = [1.0, *(1 + 0.1 * random.standard_normal(steps - 1))]
            threshold, longest = float(random.choice([0.06, 0.12, 0.24])), int(random.integers(1, 7))
            first = max(1, math.floor(0.2 * steps + 0.5))
            product, deviation, count, wanted = 1.0, 0.0, 0, []
            for step in range(steps):
                skip = False
                if step >= first:
                    product, count = product * ratios[step], count + 1
                    deviation += abs(1 - product)
                    skip = deviation <= threshold and count <= longest
                    if not skip:
                        product, deviation, count = 1.0, 0.0, 0
                wanted.append(not skip)
            assert magcache_steps(ratios, threshold, longest, first).tolist() == wanted

    @pytest.mark.parametrize("case", PUBLISHED)
    def test_what_the_published_ratios_compute(self, pipe, case):
        ratios, threshold, longest, retention, computed = PUBLISHED[case]
        assert magcache(pipe, len(ratios), ratios, threshold, longest, retention).computed_steps() == computed

    def test_worked_by_hand(self, pipe):
        ratios = [1.0, 0.5, 0.9, 1.0, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0]
        # Step 2: |1 - 0.9|; 3: + |1 - 0.9|; 4 would be + 0.19. From 5 on: 0.1, then 0.2, then 0.3.
        plan = magcache(pipe, 10, ratios, threshold=0.21, longest=3, retention=0.2)
        assert plan.computed_steps() == (0, 1, 4, 7)
        assert plan.sites == stack_runs(pipe.transformer)
        assert plan.gate is None
        assert magcache(pipe, 10, [1.0] * 10, 0.06, longest=3, retention=0.2).computed_steps() == (0, 1, 5, 9)
        assert magcache(pipe, 10, [1.0] * 10, 0.06, longest=9, retention=0).computed_steps() == (0,)
        # Half a step more than a quarter of ten counts as a whole one.
        assert magcache(pipe, 10, [1.0] * 10, 0.06, longest=9, retention=0.25).computed_steps() == (0, 1, 2)

    def test_a_step_without_a_ratio_computes(self, pipe):
        ratios = [1.0, 1.0, 1.0, math.nan, 1.0, 1.0]
        plan = magcache(pipe, 6, ratios, 0.06, longest=9, retention=0.1)
        assert plan.computed_steps() == (0, 3)
        assert plan.settings["ratios"][3] is None

    def test_resampled_as_published(self):
        ratios = [0.0, 1.0, 2.0, 3.0, 4.0]
        assert resample_ratios(ratios, 5) == tuple(ratios)
        assert resample_ratios(ratios, 3) == (0.0, 2.0, 4.0)
        # Places 0, 0.5, 1, 1.5, ...: halves go to the even one.
        assert resample_ratios(ratios, 9) == (0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0, 4.0)
        assert resample_ratios(ratios, 1) == (4.0,)
        with pytest.raises(FestinaError, match="cannot resample 0 ratios"):
            resample_ratios([], 3)

    def test_from_a_calibration(self, pipe, calibration):
        plan = magcache(pipe, STEPS, calibration, 1e9, longest=2, retention=0.2)
        assert plan.computed_steps() == (0, 3)
        ratios = calibration.magnitude_ratios()
        deviation = abs(1 - ratios[1])
        just, less = (magcache(pipe, STEPS, calibration, share * deviation, 1, 0).mask()[1, 0] for share in (1.0, 0.99))
        assert (just, less) == (False, True)
        resampled = magcache(pipe, 4, resample_ratios(ratios, 4), 1e9)
        assert len(resampled.steps) == 4
        assert Plan.from_json(plan.to_json()) == plan

    def test_neutral_threshold_is_bit_for_bit_uncached(self, pipe, calibration):
        plan = magcache(pipe, STEPS, calibration, 0.0)
        plain = generate(pipe, steps=STEPS)
        with festina.accelerate(pipe, plan) as run:
            assert torch.equal(generate(pipe, steps=STEPS), plain)
            assert not sum(run.report().served.values())

    def test_serves_the_stack_of_flux(self):
        flux = flux_pipeline()
        plan = magcache(flux, 4, [1.0] * 4, 0.1, longest=1)
        with festina.accelerate(flux, plan) as run:
            generate(flux, steps=4)
            assert run.report().served == dict.fromkeys(stack_runs(flux.transformer), 2)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"ratios": [1.0] * 5}, "5 magnitude ratios for 6 steps"),
            ({"threshold": -0.1}, "the threshold is -0.1"),
            ({"longest": 0}, "the longest reuse is 0"),
            ({"retention": 1.5}, "the retention is 1.5"),
        ],
    )
    def test_knobs(self, pipe, changed, message):
        usual = {"ratios": [1.0] * STEPS, "threshold": 0.1}
        with pytest.raises(FestinaError, match=message):
            magcache(pipe, STEPS, **{**usual, **changed})
        with pytest.raises(FestinaError, match="has no stack of blocks"):
            magcache(unets.build_sd2(), STEPS, [1.0] * STEPS, 0.1)


def cost_of(starts, distances):
    ends = [*starts[1:], len(distances)]
    return sum(distances[start, step] for start, end in zip(starts, ends, strict=True) for step in range(start, end))


def distances_of(features):
    return np.abs(features[:, None] - features[None]).sum(-1)


class TestCacheQuant:
    @pytest.mark.parametrize("interval", [1, 2, 3, 4, 5, 12])
    def test_no_grouping_of_these_sizes_is_better(self, interval):
        random = np.random.default_rng(interval)
        for steps in (7, 9, 10, 12):
            groups, least, most = math.ceil(steps / interval), math.ceil(interval / 2), 2 * interval
            distances = distances_of(np.cumsum(random.standard_normal((steps, 3)) ** 3, axis=0))
            choices = [
                (0, *inner)
                for inner in itertools.combinations(range(1, steps), groups - 1)
                if all(least <= b - a <= most for a, b in itertools.pairwise((0, *inner, steps)))
            ]
            found = group_starts(distances, interval)
            assert found in choices
            assert cost_of(found, distances) == pytest.approx(min(cost_of(each, distances) for each in choices))

    def test_groups_follow_the_jumps_of_a_feature(self):
        feature = np.repeat([0.0, 5.0, 6.0, 20.0], [2, 5, 3, 2])[:, None]
        assert group_starts(distances_of(feature), 3) == (0, 2, 7, 10)
        assert group_starts(distances_of(feature), 1) == tuple(range(12))

    def test_experts_are_not_served_to_each_other(self):
        distances = np.zeros((8, 8))
        distances[:5, 5:] = distances[5:, :5] = np.inf
        starts = group_starts(distances, 2)
        assert 5 in starts
        distances[:] = np.inf
        np.fill_diagonal(distances, 0.0)
        with pytest.raises(FestinaError, match="keep what two experts compute apart"):
            group_starts(distances, 2)

    def test_the_plan_serves_what_was_measured(self, pipe, calibration):
        plan = cachequant(pipe, STEPS, calibration, 2)
        assert plan.sites == calibration.feature == stack_runs(pipe.transformer)
        assert plan.computed_steps() == group_starts(calibration.distances(), 2)
        assert len(plan.computed_steps()) == 3
        neutral = cachequant(pipe, STEPS, calibration, 1)
        assert neutral.key() == Plan.computing_all(plan.denoiser, plan.sites, STEPS).key()
        assert Plan.from_json(plan.to_json()) == plan
        plain = generate(pipe, steps=STEPS)
        with festina.accelerate(pipe, neutral):
            assert torch.equal(generate(pipe, steps=STEPS), plain)

    def test_a_unet_is_cut_at_its_shallowest_level(self):
        sd = unets.build_sd2()
        found = calibrate(sd, [PROMPT], 4, guidance=5.0, call={"height": 64, "width": 64}, measures=["distances"])
        plan = cachequant(sd, 4, found, 2)
        assert plan.sites == ("down_blocks.1..up_blocks.2:feature",)
        with festina.accelerate(sd, plan) as run:
            sd(PROMPT, num_inference_steps=4, height=64, width=64, output_type="latent")
            assert run.report().computed == {plan.sites[0]: 2}

    def test_knobs(self, pipe, calibration):
        for interval in (0, 2.5):
            with pytest.raises(FestinaError, match="the interval is"):
                cachequant(pipe, STEPS, calibration, interval)
        with pytest.raises(FestinaError, match="wanted an interval of at most 12"):
            cachequant(pipe, STEPS, calibration, 13)


class TestTeaCacheCurve:
    def test_the_fit_finds_the_polynomial_again(self):
        curve = (3.0, -2.0, 0.5, 1.5, 0.02)
        moved = np.linspace(0.05, 0.9, 3 * (STEPS - 1)).reshape(3, STEPS - 1)
        rows = tuple(
            ((None, *map(float, row)), (None, *(float(np.polyval(curve, value)) for value in row))) for row in moved
        )
        found = made_up(rows)
        np.testing.assert_allclose(fit_curve(found), curve, rtol=1e-6)
        plan = teacache(pixart_transformer(), STEPS, 0.1, found)
        assert plan.gate.curve == fit_curve(found)
        assert plan.settings["calibration"]["pictures"] == 3
        # A line through the same points is the best line.
        slope, offset = fit_curve(found, degree=1)
        x, y = found.changes().T
        assert ((y - slope * x - offset) * x).sum() == pytest.approx(0, abs=1e-8)

    def test_too_little_to_fit(self):
        few = made_up((((None, 0.1, 0.2, 0.3, None, None), (None, 0.1, 0.2, 0.3, None, None)),))
        assert len(few.changes()) == 3
        with pytest.raises(FestinaError, match="3 different changes for a polynomial of degree 4"):
            fit_curve(few)
        near = tuple(0.5 + 1e-9 * step for step in range(1, STEPS))
        with pytest.raises(FestinaError, match="lie too close together"):
            fit_curve(made_up((((None, *near), (None, *near)),)))
        with pytest.raises(FestinaError, match="degree 10"):
            fit_curve(few, degree=10)

    def test_published_curves(self):
        flux = flux_pipeline()
        assert teacache(flux, 4, 0.4).gate.curve == PUBLISHED_CURVES["FluxTransformer2DModel"]
        # The least that a step adds on FLUX, which caps the steps served in a row.
        values = np.polyval(PUBLISHED_CURVES["FluxTransformer2DModel"], np.linspace(0, 1, 100001))
        assert values.min() == pytest.approx(0.180, abs=5e-4)
        values = np.polyval(PUBLISHED_CURVES["HunyuanVideoTransformer3DModel"], np.linspace(0, 1, 100001))
        assert values.min() == pytest.approx(0.052, abs=5e-4)
        with pytest.raises(FestinaError, match="no curve is published for PixArtTransformer2DModel"):
            teacache(pixart_transformer(), 4, 0.4)
        with pytest.raises(FestinaError, match="a curve without coefficients"):
            teacache(flux, 4, 0.4, ())

    def test_measured_on_a_pipeline(self, pipe, calibration):
        plan = teacache(pipe, STEPS, 1e9, calibration)
        assert plan.gate.curve == fit_curve(calibration)
        with festina.accelerate(pipe, plan) as run:
            generate(pipe, steps=STEPS)
            assert run.report().served == {plan.sites[0]: STEPS - 2}


METHODS = {
    "smoothcache": lambda pipe, steps, found: smoothcache(pipe, steps, found, 0.1),
    "magcache": lambda pipe, steps, found: magcache(pipe, steps, found, 0.1),
    "cachequant": lambda pipe, steps, found: cachequant(pipe, steps, found, 2),
    "teacache": lambda pipe, steps, found: teacache(pipe, steps, 0.1, found),
}

NEEDED = dict(zip(METHODS, ("lags", "magnitudes", "distances", "changes"), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_calibration_of_something_else_is_refused(name, pipe, calibration):
    make = METHODS[name]
    make(pipe, STEPS, calibration)
    make(pipe.transformer, STEPS, calibration)
    with pytest.raises(FestinaError, match="the calibration has 6 steps, the plan 8; calibrate this pipeline"):
        make(pipe, 8, calibration)
    with pytest.raises(FestinaError, match=r"of a PixArtTransformer2DModel with 9 component sites, which this"):
        make(pixart_pipeline(4), STEPS, calibration)
    with pytest.raises(FestinaError, match="of a PixArtTransformer2DModel with 9 component sites, which this Flux"):
        make(flux_pipeline(), STEPS, calibration)
    with pytest.raises(FestinaError, match="made with DDIMScheduler, not with DPMSolverMultistepScheduler"):
        make(pipe, STEPS, replace(calibration, sampler="DDIMScheduler"))
    for measure in MEASURES:
        alone = calibrate(pipe, [PROMPT], STEPS, guidance=4.5, call=PIXART, measures=[measure])
        if measure == NEEDED[name]:
            make(pipe, STEPS, alone)
        else:
            with pytest.raises(FestinaError, match=f"has no {NEEDED[name]}, only {measure};"):
                make(pipe, STEPS, alone)
    with pytest.raises(FestinaError, match="has no picture yet"):
        make(pipe, STEPS, replace(calibration, pictures=(), branches={}))
