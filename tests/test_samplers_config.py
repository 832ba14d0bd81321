"""The settings of `PlanScheduler`: taken over, shown, saved, refused."""

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from samplers_toy import BETAS, FLUX, flow, levels_of, noise, run, table, vp

from festina import FestinaError
from festina.samplers import SOURCES, LinearWeights, PlanScheduler, SolverStep, SolverTable


def test_prediction_and_family_survive_the_change_of_scheduler():
    source = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **BETAS)
    scheduler = PlanScheduler.from_scheduler(source)
    assert (scheduler.frame.family, scheduler.frame.prediction) == ("variance_preserving", "v_prediction")
    assert scheduler.config.prediction_type == "v_prediction"
    assert (flow().frame.family, flow().frame.prediction) == ("flow", "flow_prediction")
    # A scheduler made from the settings alone would not know whose they are.
    with pytest.raises(FestinaError, match="from_scheduler"):
        PlanScheduler.from_config(source.config)


def test_the_settings_that_pipelines_read_are_shown():
    scheduler = PlanScheduler.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(**FLUX))
    assert scheduler.config.get("base_shift") == 0.4
    assert scheduler.config.get("max_image_seq_len") == 5000
    assert scheduler.config.get("base_image_seq_len") == 256
    assert scheduler.config.get("max_shift") == 1.15
    assert scheduler.config.use_dynamic_shifting is True
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize(
    "source",
    [
        diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=3
        ),
        diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=3, lower_order_final=False, **BETAS),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        diffusers.PNDMScheduler(**BETAS),
    ],
)
def test_the_source_comes_back_with_all_its_settings(source, tmp_path):
    PlanScheduler.from_scheduler(source, solver_order=2).save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path).source_scheduler
    assert type(again) is type(source)

    def settings(scheduler):
        return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}

    assert settings(again) == settings(source)
    # The usual way to another class, too, begins with its settings.
    other = type(source).from_config(PlanScheduler.from_scheduler(source).source_scheduler.config)
    for each in (source, again, other):
        each.set_timesteps(7)
        assert torch.equal(each.timesteps, source.timesteps)
        if hasattr(source, "sigmas"):
            assert torch.equal(each.sigmas, source.sigmas)


def test_the_page_lists_every_source():
    page = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text(encoding="utf-8")
    section = page.split("## Whose place it takes")[1].split("\n## ")[0]
    listed = [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(listed) == sorted(SOURCES)


def test_no_class_is_said_to_be_made_of_the_settings_shown():
    # Which for a flow model would leave its levels out: a pipeline must not read them as true.
    scheduler = PlanScheduler.from_scheduler(
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    )
    assert scheduler.compatibles == []
    assert "use_flow_sigmas" not in scheduler.config
    assert scheduler.source_scheduler.config.use_flow_sigmas is True


@pytest.mark.parametrize("made", ["solver", "table", "betas"])
def test_saving_and_loading(tmp_path, made):
    if made == "solver":
        scheduler = flow(solver="unipc_bh1", solver_order=3, corrector=True, largest_step_ratio=2.5)
    elif made == "table":
        linear = LinearWeights((0.5,), "data", sample=0.5)
        scheduler = flow(table=SolverTable((SolverStep(1.0), SolverStep(0.5, linear=linear))))
    else:
        betas = np.linspace(1e-4, 0.02, 1000)
        scheduler = PlanScheduler.from_scheduler(diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False))
    scheduler.save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path)
    assert again.frame == scheduler.frame
    assert again.table == scheduler.table
    for key in ("solver", "solver_order", "corrector", "largest_step_ratio", "source", "num_train_timesteps"):
        assert again.config[key] == scheduler.config[key]
    for each in (scheduler, again):
        each.set_timesteps(2)
    assert torch.equal(again.sigmas, scheduler.sigmas)
    ends = [run(each, levels_of(each), noise(), each.frame.prediction) for each in (scheduler, again)]
    assert torch.equal(*ends)
    copied = PlanScheduler.from_scheduler(scheduler)
    assert copied.frame == scheduler.frame


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PlanScheduler(), "from_scheduler"),
        (lambda: PlanScheduler.from_scheduler(diffusers.LCMScheduler()), "LCMScheduler gives no noise levels"),
        (lambda: PlanScheduler.from_scheduler(diffusers.DDIMScheduler()), "clip_sample=False"),
        (
            lambda: PlanScheduler.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
            "the other way round",
        ),
        (
            lambda: PlanScheduler.from_scheduler(
                diffusers.DPMSolverMultistepScheduler.from_config(
                    diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction").config
                )
            ),
            "heeds no timestep_type",
        ),
        (lambda: PlanScheduler.from_scheduler(diffusers.IPNDMScheduler()), "no training schedule"),
        (lambda: PlanScheduler(source="CosineDPMSolverMultistepScheduler"), "arctan"),
        (
            lambda: PlanScheduler.from_scheduler(diffusers.DDIMParallelScheduler()),
            "DDIMParallelScheduler with clip_sample=True",
        ),
        (lambda: vp(solver="heun"), "no solver is called"),
        (lambda: vp(solver="deis_time", corrector=True), "no corrector"),
        (lambda: vp(solver_order=4), "no order 4"),
        (lambda: flow(table=table(1.5, 0.5)), "no noise level"),
        (lambda: vp().set_timesteps(), "neither"),
        (lambda: vp().set_timesteps(0), "0 steps"),
        (lambda: vp().set_timesteps(sigmas=[]), "empty"),
        (lambda: vp().set_timesteps(timesteps=[]), "empty"),
        (lambda: vp().set_timesteps(timesteps=[3], sigmas=[1.0]), "Give one"),
        (lambda: vp().step(noise(), 999, noise()), "Call set_timesteps"),
        (lambda: flow().scale_noise(noise(), 1.0), "needs noise"),
        (
            lambda: PlanScheduler.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(**FLUX)).set_timesteps(4),
            "no mu was given",
        ),
    ],
)
def test_what_cannot_be_run_raises(make, said):
    with pytest.raises(FestinaError, match=said):
        make()


def test_wrong_steps_raise():
    scheduler = vp()
    scheduler.set_timesteps(2)
    with pytest.raises(FestinaError, match="none of the run's timesteps"):
        scheduler.step(noise(), 123.0, noise())
    with pytest.raises(FestinaError, match="none of the run's timesteps"):
        scheduler.step(noise(), float(scheduler.timesteps[0]) + 0.5, noise())
    with pytest.raises(FestinaError, match="predicted variance"):
        scheduler.step(torch.zeros(8, 6), scheduler.timesteps[0], noise())
    scheduler.set_timesteps(1)
    scheduler.step(noise(), scheduler.timesteps[0], noise())
    with pytest.raises(FestinaError, match="all made"):
        scheduler.step(noise(), scheduler.timesteps[0], noise())
