"""Recording runs through the scheduler: what is kept, and that nothing is left behind."""

import diffusers
import pytest
import torch
from samplers_pipe import ToyPipe
from samplers_toy import noise
from tiny import generate, pixart_pipeline

from festina.errors import FestinaError
from festina.samplers import PlanScheduler, SamplerRun, SolverStep, SolverTable, compile_table
from festina.samplers.recording import record
from festina.samplers.times import karras, table_on


def test_a_pipelines_samples_and_guided_outputs_are_kept():
    pipe = pixart_pipeline()
    source, frame = pipe.scheduler, PlanScheduler.from_scheduler(pipe.scheduler).frame
    table = table_on(frame, karras(frame, 4))
    drawn = []
    found = record(pipe, table, lambda: drawn.append(generate(pipe, steps=4)))
    assert pipe.scheduler is source
    assert "step" not in vars(source)
    assert (found.calls, len(found.noises), found.frame) == (4, 5, frame)
    assert found.noises[:-1] == pytest.approx(karras(frame, 4))
    assert found.samples.shape[0] == 5
    assert found.outputs.shape == found.samples[1:].shape
    # The outputs are those that the scheduler got: its steps follow from them.
    run = SamplerRun(compile_table(table, frame), frame)
    for place, output in enumerate(found.outputs):
        torch.testing.assert_close(run.step(output, found.samples[place]), found.samples[place + 1])
    pipe.scheduler = PlanScheduler.from_scheduler(source, table)
    assert torch.equal(generate(pipe, steps=4), drawn[0])


def test_runs_lie_side_by_side():
    pipe = ToyPipe()
    table = table_on(pipe.frame, karras(pipe.frame, 3))
    both = record(pipe, table, lambda: [pipe(3, seed, 5) for seed in (1, 2)])
    assert both.samples.shape == (4, 10, 3)
    assert both.samples.dtype == torch.float64
    assert torch.equal(both.samples[0], torch.cat([noise(seed, 5, torch.float64) for seed in (1, 2)]))
    second = record(pipe, table, lambda: pipe(3, 2, 5))
    assert torch.equal(both.samples[:, 5:], second.samples)
    assert torch.equal(both.outputs[:, 5:], second.outputs)


def test_levels_after_the_shift_and_calls_left_out():
    pipe = ToyPipe(flow=True)
    steps = [SolverStep(value, order=1) for value in (1.0, 0.75, 0.5, 0.25)]
    steps[2] = SolverStep(0.5, call="extrapolate")
    found = record(pipe, SolverTable(tuple(steps), before_shift=True), lambda: pipe(3))
    assert found.noises == pytest.approx([1.0, 0.9, 0.5, 0.0])
    assert (found.calls, len(found.samples)) == (3, 4)


class ScaledPipe:
    """Draws with a scheduler that scales samples for the network, as EDM's do."""

    def __init__(self):
        self.scheduler = diffusers.EDMEulerScheduler()

    def __call__(self, steps, seed):
        self.scheduler.set_timesteps(steps)
        sample = self.scheduler.init_noise_sigma * noise(seed)
        for timestep in self.scheduler.timesteps:
            said = torch.tanh(self.scheduler.scale_model_input(sample, timestep))
            sample = self.scheduler.step(said, timestep, sample).prev_sample
        return sample


def test_runs_that_begin_with_a_scaling_are_told_apart():
    pipe = ScaledPipe()
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    ends = []
    found = record(pipe, table_on(frame, karras(frame, 3)), lambda: ends.extend(pipe(3, seed) for seed in (1, 2)))
    assert found.samples.shape == (4, 16, 3)
    assert torch.equal(found.samples[-1], torch.cat(ends))
    assert torch.equal(found.samples[0, 8:], pipe.scheduler.init_noise_sigma * noise(2))


def test_an_error_while_drawing_leaves_the_pipeline_as_it_was():
    pipe = ToyPipe()
    source, table = pipe.scheduler, table_on(pipe.frame, karras(pipe.frame, 3))

    def fails():
        pipe(3)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        record(pipe, table, fails)
    assert pipe.scheduler is source


def test_runs_that_are_not_whole_are_refused():
    pipe = ToyPipe()
    table = table_on(pipe.frame, karras(pipe.frame, 3))
    with pytest.raises(FestinaError, match="nothing was drawn"):
        record(pipe, table, lambda: None)

    def midway():
        pipe.scheduler.set_timesteps(3)
        pipe.scheduler.set_begin_index(1)
        for timestep in pipe.scheduler.timesteps[1:]:
            pipe.scheduler.step(noise(), timestep, noise())

    with pytest.raises(FestinaError, match="2 of the table's 3"):
        record(pipe, table, midway)
    with pytest.raises(FestinaError, match="different shapes"):
        record(pipe, table, lambda: (pipe(3), drawn_wider(pipe)))


def drawn_wider(pipe):
    pipe.scheduler.set_timesteps(3)
    sample = torch.ones(2, 4)
    for timestep in pipe.scheduler.timesteps:
        sample = pipe.scheduler.step(torch.ones(2, 4), timestep, sample).prev_sample
