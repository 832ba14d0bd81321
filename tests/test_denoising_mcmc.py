"""Denoising MCMC: chains on a mixture whose score and noise levels are known exactly, the integrators on an equation
with a known solution, exact counts of network calls, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from denoising_toy import (
    CENTRES,
    COVARIANCE,
    MEAN,
    SHARES,
    SPREAD,
    ExactReader,
    flat_clean,
    mode_logits,
    toy_pipe,
)
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import nn

from festina import FestinaError
from festina.samplers import PlanScheduler
from festina.samplers.denoising_mcmc import DenoisingChains, LangevinGibbs
from festina.samplers.karras import KarrasIntegrator
from festina.samplers.noise_classifier import NoiseClassifier, load_noise_classifier
from festina.samplers.row_denoiser import RowDenoiser

SHORT = LangevinGibbs(
    step_size=0.1,
    skip=3,
    chains=8,
    integrator=KarrasIntegrator(2, last=0.05),
    start=KarrasIntegrator(3, churn=80.0),
    start_steps=2,
    start_step_size=0.05,
    warm_up=4,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_clean(samples, sigmas):
    """The mean of the clean sample of one Gaussian of deviation SPREAD around 0.4."""
    kept = (SPREAD**2 / (SPREAD**2 + sigmas.square()))[:, None]
    return 0.4 + kept * (samples - 0.4)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_chains_find_the_mixture_from_a_single_place(greedy):
    settings = LangevinGibbs(
        step_size=0.1,
        skip=10 if greedy else 1,
        chains=400,
        greedy=greedy,
        integrator=KarrasIntegrator(8),
        # One node takes pure noise to the mean of the mixture, so all chains begin between its modes.
        start=KarrasIntegrator(1),
        start_noise=0.0,
        start_steps=0,
        warm_up=200,
    )
    chains = DenoisingChains(toy_pipe(), ExactReader(), settings, seeded())
    drawn = chains.draw(1200)[:, :, 0, 0]
    of_second = mode_logits(drawn, torch.full((len(drawn),), 1e-3)).softmax(1)[:, 1].mean()
    # Three deviations of the share of 400 independent draws are 0.069.
    assert of_second == pytest.approx(float(SHARES[1]), abs=0.07)
    assert torch.allclose(drawn.mean(0), MEAN, atol=0.2)
    assert torch.allclose(torch.cov(drawn.T), COVARIANCE, rtol=0.2, atol=0.05)


def test_heuns_method_is_of_second_order():
    start = torch.linspace(-6, 6, 7, dtype=torch.float64)[:, None]
    sigmas = torch.linspace(2, 8, 7, dtype=torch.float64)
    last = 0.05
    shrunk = ((SPREAD**2 + last**2) / (SPREAD**2 + sigmas.square())).sqrt()[:, None]
    exact = gaussian_clean(0.4 + shrunk * (start - 0.4), torch.full_like(sigmas, last))
    errors = []
    for nodes in (21, 41, 81):
        found = KarrasIntegrator(nodes, last=last)(gaussian_clean, start, sigmas, seeded())
        errors.append(float((found - exact).abs().max()))
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_nodes_are_those_of_karras_for_each_sample():
    levels = KarrasIntegrator(5, last=0.01).levels(torch.tensor([50.0, 0.5, 0.004], dtype=torch.float64))
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=7.0)
    scheduler.set_timesteps(5)
    assert levels[:, 0].tolist() == pytest.approx(scheduler.sigmas[:5].tolist(), rel=1e-5)
    assert (levels[0, 1].item(), levels[-1, 1].item()) == pytest.approx((0.5, 0.01))
    assert levels[:, 2].tolist() == pytest.approx([0.004] * 5)
    assert KarrasIntegrator(1).levels(torch.tensor([0.7])).tolist() == [[pytest.approx(0.7)]]


@pytest.mark.parametrize("nodes", [1, 2, 7])
def test_an_integrator_makes_the_calls_it_says_and_churns_only_where_it_may(nodes):
    asked = []

    def denoise(samples, sigmas):
        asked.append(sigmas)
        return gaussian_clean(samples, sigmas)

    start, sigmas = torch.randn(3, 1, generator=seeded()).double(), torch.tensor([30.0, 0.9, 0.03]).double()
    plain, churned = KarrasIntegrator(nodes), KarrasIntegrator(nodes, churn=80.0)
    found = plain(denoise, start, sigmas, seeded(1))
    assert len(asked) == plain.calls == 2 * nodes - 1
    assert torch.equal(torch.stack(asked[::2]), plain.levels(sigmas))
    assert torch.equal(found, plain(denoise, start, sigmas, seeded(2)))
    asked.clear()
    stirred = churned(denoise, start, sigmas, seeded(1))
    levels = plain.levels(sigmas)
    within = (levels >= 0.05) & (levels <= 1)
    assert torch.allclose(torch.stack(asked[::2]), levels * torch.where(within, 2**0.5, 1.0))
    assert torch.equal(stirred[2], found[2])
    assert torch.equal(stirred, churned(denoise, start, sigmas, seeded(1)))
    assert torch.equal(stirred[1], churned(denoise, start, sigmas, seeded(2))[1]) == (not within[:, 1].any())


def test_churn_keeps_the_distribution():
    start = 0.4 + (SPREAD**2 + 9) ** 0.5 * torch.randn(20_000, 1, generator=seeded(), dtype=torch.float64)
    integrator = KarrasIntegrator(24, churn=80.0, churn_noise=1.0)
    found = integrator(gaussian_clean, start, torch.full((20_000,), 3.0, dtype=torch.float64), seeded(1))
    assert float(found.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.03)


def test_network_calls_are_counted_exactly():
    pipe = toy_pipe()
    chains = DenoisingChains(pipe, ExactReader(), SHORT, seeded())
    assert (SHORT.calls, SHORT.start_calls) == (3 + 3, 5 + 2 + 4)
    assert pipe.unet.calls == []
    chains.draw(16)
    assert chains.denoiser.rows == 8 * (11 + 2 * 6)
    assert [len(noisy) for noisy, _ in pipe.unet.calls] == [8] * 23
    chains.draw(8)
    assert chains.denoiser.rows == 8 * (11 + 3 * 6)


def test_the_seed_decides_and_nothing_else():
    def chains(seed):
        return DenoisingChains(toy_pipe(), ExactReader(), SHORT, seeded(seed))

    torch.manual_seed(1)
    whole = chains(0).draw(24)
    torch.manual_seed(2)
    again = chains(0)
    assert torch.equal(torch.cat([again.draw(8), again.draw(16)]), whole)
    assert not torch.equal(chains(1).draw(24), whole)
    drawn = DenoisingChains(toy_pipe(), ExactReader(), replace(SHORT, greedy=False), seeded(0)).draw(24)
    assert not torch.equal(drawn, whole)


def test_a_step_is_that_of_langevin():
    chains = DenoisingChains(toy_pipe(), ExactReader(), SHORT, seeded(5))
    samples = torch.randn(8, 2, 1, 1, generator=seeded(), dtype=torch.float64)
    sigmas = torch.linspace(0.3, 2, 8, dtype=torch.float64)
    moved, read = chains.walk(samples, sigmas, 0.2)
    score = (flat_clean(samples, sigmas) - samples) / sigmas.square().view(-1, 1, 1, 1)
    noise = torch.randn(8, 2, 1, 1, generator=seeded(5), dtype=torch.float64)
    # Times are told in single precision.
    assert torch.allclose(moved, samples + 0.1 * score + 0.2**0.5 * noise, atol=1e-3)
    assert torch.equal(read, chains.read(moved))


def test_the_gibbs_step_takes_the_likeliest_level_or_draws_by_how_likely_levels_are():
    reader, point = ExactReader(levels=6), torch.tensor([3.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1)
    likely = reader(point)[0].softmax(0)
    chains = DenoisingChains(toy_pipe(), reader, SHORT, seeded())
    assert chains.read(point).item() == reader.sigmas[likely.argmax()].item()
    chains = DenoisingChains(toy_pipe(), reader, replace(SHORT, greedy=False), seeded())
    read = chains.read(point.expand(20_000, 2, 1, 1))
    for sigma, share in zip(reader.sigmas, likely, strict=True):
        assert (read == sigma).double().mean().item() == pytest.approx(share.item(), abs=0.015)


def test_the_state_of_least_noise_on_the_way_is_what_is_denoised():
    class ScriptedReader(ExactReader):
        """Says what it is told to: levels of two chains, one pair for every Gibbs step."""

        script = iter([(9, 9), (4, 3), (2, 5), (3, 1)])

        def __call__(self, samples):
            return nn.functional.one_hot(torch.tensor(next(self.script)), len(self.sigmas))

    settings = replace(
        SHORT, chains=2, start=KarrasIntegrator(1), start_steps=0, warm_up=0, integrator=KarrasIntegrator(1)
    )
    pipe, reader = toy_pipe(), ScriptedReader()
    DenoisingChains(pipe, reader, settings, seeded()).draw(2)
    assert len(pipe.unet.calls) == 1 + 3 + 1
    noisy, sigmas = pipe.unet.calls[-1]
    assert torch.allclose(sigmas, reader.sigmas[[2, 1]], rtol=1e-4)
    # The first chain's state of least noise was also the one that its third step began from.
    assert torch.allclose(noisy[0], pipe.unet.calls[3][0][0], rtol=1e-9)
    assert not torch.allclose(noisy[0], pipe.unet.calls[2][0][0], rtol=1e-2)


class EchoUNet(nn.Module):
    """Says a fixed function of what it is told."""

    dtype, device = torch.float64, torch.device("cpu")
    config = SimpleNamespace(in_channels=2, out_channels=2, sample_size=1)

    def forward(self, sample, timestep, return_dict=True):
        return 0.3 * sample + 0.01 * timestep.double().view(-1, 1, 1, 1), None


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False),
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        DDIMScheduler(clip_sample=False, prediction_type="sample"),
        diffusers.EDMEulerScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["epsilon", "v", "sample", "edm", "flow"],
)
def test_rows_are_denoised_each_at_its_own_level_in_every_family(scheduler):
    denoiser = RowDenoiser(SimpleNamespace(unet=EchoUNet(), scheduler=scheduler))
    frame = denoiser.frame
    samples = torch.randn(4, 2, 1, 1, generator=seeded(), dtype=torch.float64)
    sigmas = torch.tensor([0.03, 4.0, 0.4, 4.0], dtype=torch.float64)
    found = denoiser(samples, sigmas)
    for row, sigma in enumerate(sigmas.tolist()):
        noise = sigma / (1 + sigma) if frame.family == "flow" else sigma
        level = frame.level(noise)
        assert level.sigma_hat == pytest.approx(sigma)
        sample = level.alpha * samples[row]
        said = 0.3 * frame.input_scale(level) * sample + 0.01 * frame.network_time(noise)
        assert torch.allclose(found[row], frame.predictions(said, sample, level)[0], rtol=1e-5, atol=1e-5)
    assert denoiser.rows == 4
    assert torch.allclose(
        denoiser.score(samples, sigmas), (found - samples) / sigmas.square().view(-1, 1, 1, 1), rtol=1e-9
    )


def tiny_pipe(**changes):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=changes.pop("out_channels", 3),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=changes.pop("num_class_embeds", None),
    )
    return DDIMPipeline(unet.eval(), DDIMScheduler(**{"clip_sample": False, **changes}))


def test_a_stock_pipeline_walks_and_stays_as_it_was():
    torch.manual_seed(0)
    pipe, classifier = tiny_pipe(), NoiseClassifier(3, 16, 0.02, 20.0, levels=40, width=4)
    scheduler, times = pipe.scheduler, pipe.scheduler.timesteps.clone()
    settings = replace(SHORT, chains=3)
    chains = DenoisingChains(pipe, classifier, settings, seeded())
    drawn = chains.draw(6)
    assert drawn.shape == (6, 3, 16, 16)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    assert chains.denoiser.rows == 3 * (settings.start_calls + 2 * settings.calls)
    assert torch.equal(DenoisingChains(pipe, classifier, settings, seeded()).draw(6), drawn)
    assert pipe.scheduler is scheduler
    assert torch.equal(pipe.scheduler.timesteps, times)
    assert not drawn.requires_grad


def test_the_stock_pipeline_draws_with_a_plan_scheduler_but_not_with_ddims_noise():
    pipe = tiny_pipe()
    pipe.set_progress_bar_config(disable=True)

    def drawn(**arguments):
        return pipe(num_inference_steps=3, generator=seeded(), output_type="np", **arguments).images

    own = torch.from_numpy(drawn())
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, solver_order=1)
    assert torch.allclose(torch.from_numpy(drawn()), own, atol=1e-4)
    for arguments in ({"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.raises(FestinaError, match="adds no noise and clips nothing"):
            drawn(**arguments)


def test_a_row_does_not_see_the_others():
    denoiser = RowDenoiser(tiny_pipe())
    samples, sigmas = torch.randn(3, 3, 16, 16, generator=seeded()), torch.tensor([0.1, 3.0, 40.0])
    together = denoiser(samples, sigmas)
    for row in range(3):
        alone = denoiser(samples[row : row + 1], sigmas[row : row + 1])
        assert torch.allclose(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_noise_classifier_is_kept_and_found_again(tmp_path):
    torch.manual_seed(0)
    classifier = NoiseClassifier(3, 32, 0.01, 50.0, levels=30, width=4)
    for parameter in classifier.parameters():
        parameter.data = parameter.data.half().float()
    assert classifier.sigmas.log().diff().tolist() == pytest.approx([torch.log(torch.tensor(5000.0)).item() / 29] * 29)
    assert (classifier.sigmas[0].item(), classifier.sigmas[-1].item()) == pytest.approx((0.01, 50))
    classifier.save(tmp_path)
    found = load_noise_classifier(tmp_path)
    noisy = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(noisy), classifier(noisy))
    assert found.shape == (3, 32, 32)
    (tmp_path / "config.json").write_text('{"channels": 3}')
    with pytest.raises(FestinaError, match="holds no noise classifier"):
        load_noise_classifier(tmp_path)
    with pytest.raises(FestinaError, match="no noise classifier in"):
        load_noise_classifier(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 24, 0.01, 50.0), "halves its samples four times"),
        ((3, 32, 50.0, 0.01), "cannot be told apart"),
        ((3, 32, 0.0, 1.0), "cannot be told apart"),
        ((3, 32, 0.1, 1.0, 1), "cannot be told apart"),
    ],
)
def test_classifiers_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(FestinaError, match=message):
        NoiseClassifier(*sizes)


def test_pipelines_that_no_chain_can_walk_on_are_refused():
    from festina.zoo import load

    for pipe, message in (
        (load("scenes"), "has no unet"),
        (SimpleNamespace(unet=ConditionalUNet(), scheduler=None), "wants encoder_hidden_states: it is conditional"),
        (tiny_pipe(num_class_embeds=4), "wants class_labels: it is conditional"),
        (tiny_pipe(out_channels=6), "6 channels for 3"),
        (tiny_pipe(clip_sample=True), "clip_sample"),
    ):
        with pytest.raises(FestinaError, match=message):
            DenoisingChains(pipe, ExactReader(), SHORT, seeded())
    unknown = diffusers.DDIMPipeline(tiny_pipe().unet, DDIMScheduler(clip_sample=False))
    unknown.scheduler = diffusers.ScoreSdeVeScheduler()
    with pytest.raises(FestinaError, match="ScoreSdeVeScheduler"):
        DenoisingChains(unknown, ExactReader(), SHORT, seeded())


class ConditionalUNet(nn.Module):
    """Wants to be told what to draw."""

    config = SimpleNamespace(in_channels=2, out_channels=2, sample_size=1)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True):
        raise AssertionError("never called")


@pytest.mark.parametrize(("lowest", "highest"), [(0.001, 6.0), (0.3, 400.0)])
def test_a_classifier_of_levels_that_the_model_lacks_is_refused(lowest, highest):
    with pytest.raises(FestinaError, match=rf"from {lowest:g} to {highest:g} apart, but the model knows"):
        DenoisingChains(toy_pipe(), ExactReader(lowest, highest), SHORT, seeded())


def test_a_classifier_of_other_samples_is_refused():
    classifier = NoiseClassifier(3, 16, 0.02, 20.0, levels=4, width=4)
    with pytest.raises(FestinaError, match=r"\(3, 16, 16\), the model's have \(2, 1, 1\)"):
        DenoisingChains(toy_pipe(), classifier, SHORT, seeded())


@pytest.mark.parametrize(
    "changes",
    [{"step_size": 0.0}, {"start_step_size": -1.0}, {"skip": 0}, {"chains": 0}, {"warm_up": -1}, {"start_noise": -0.1}],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(FestinaError, match=f"{next(iter(changes.values())):g}"):
        replace(SHORT, **changes)


@pytest.mark.parametrize("changes", [{"nodes": 0}, {"churn": -1.0}, {"last": 0.0}, {"rho": 0.0}])
def test_integrators_out_of_range_are_refused(changes):
    with pytest.raises(FestinaError, match="no integrator has"):
        KarrasIntegrator(**{"nodes": 4, **changes})


def test_counts_that_do_not_fit_the_chains_and_chains_that_run_away_are_refused():
    chains = DenoisingChains(toy_pipe(), ExactReader(), SHORT, seeded())
    for count in (0, 12):
        with pytest.raises(FestinaError, match="multiple of 8"):
            chains.draw(count)
    wild = DenoisingChains(toy_pipe(), ExactReader(), replace(SHORT, step_size=1e300, skip=20), seeded())
    with pytest.raises(FestinaError, match="ran away"):
        wild.draw(8)


def test_the_toy_is_what_it_says():
    """Its network is exact: the frame's levels, read back, give the mean of the mixture."""
    pipe = toy_pipe()
    denoiser = RowDenoiser(pipe)
    samples = CENTRES[:, :, None, None] + 0.3
    sigmas = torch.tensor([0.05, 20.0], dtype=torch.float64)
    assert torch.allclose(denoiser(samples, sigmas), flat_clean(samples, sigmas), atol=1e-3)
    assert PlanScheduler.from_scheduler(pipe.scheduler).frame == denoiser.frame
