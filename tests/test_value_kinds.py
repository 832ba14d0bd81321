"""Value kinds against another route to the same result: everything computes, and hooks put the remembered values in."""

import inspect

import pytest
import torch
from denoisers.all_classes import CLASSES

import festina
from festina import FestinaError, Plan, Step
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.plan import even_noise

STEPS = 5


def built(name):
    torch.manual_seed(0)
    return CLASSES[name].build().eval()


def inputs(name, model, step):
    """The denoised sample changes from step to step."""
    torch.manual_seed(1)
    given = CLASSES[name].inputs()
    first = next(each for each in inspect.signature(type(model).forward).parameters if each in given)
    given[first] = given[first] + 0.2 * step * torch.randn_like(given[first])
    return given


@torch.no_grad()
def sample(name, model, run=None, ended=lambda: None):
    outputs = []
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        output = model(**inputs(name, model, step))
        outputs.append(output[0] if isinstance(output, tuple) else output.sample)
        ended()
        if run is not None:
            run.next_step()
    return torch.stack(outputs)


def plan_of(model, **columns):
    """A plan from site names (with `_` for what a keyword cannot hold) to a text of actions."""
    names = tuple(columns)
    rows = ["".join(columns[name][step] for name in names) for step in range(STEPS)]
    steps = tuple(Step(level, row) for level, row in zip(even_noise(STEPS), rows, strict=True))
    return Plan(type(model).__name__, names, steps)


class Replay:
    """Hooks on modules that compute in every step and, where the plan reuses, return the remembered output instead."""

    def __init__(self, model, paths, actions, added=None):
        self.step, self.memory, self.entered = 0, {}, None
        self.actions, self.added = actions, added
        self.handles = [model.get_submodule(path).register_forward_hook(self._hook(path)) for path in paths]
        if added:
            self.handles.append(model.get_submodule(added).register_forward_pre_hook(self._entering, with_kwargs=True))

    def _entering(self, module, args, kwargs):
        self.entered = args[0] if args else kwargs["hidden_states"]

    def _hook(self, path):
        def hook(module, args, output):
            if self.actions[self.step] == "C":
                self.memory[path] = output - self.entered if self.added else output
                return output
            return self.entered + self.memory[path] if self.added else self.memory[path]

        return hook

    def ended(self):
        self.step += 1

    def remove(self):
        for handle in self.handles:
            handle.remove()


def by_hooks(name, model, paths, actions, added=None):
    replay = Replay(model, paths, actions, added)
    try:
        return sample(name, model, ended=replay.ended)
    finally:
        replay.remove()


UNETS = ("UNet2DConditionModel", "UNet2DConditionModel-sdxl", "UNet2DModel", "UNetMotionModel", "DreamLiteUNetModel")


@pytest.mark.parametrize("name", UNETS)
def test_everything_below_a_level_is_deepcache(name):
    """Only the shallow levels run; what comes up from below is remembered (DeepCache, arXiv 2312.00858)."""
    model, actions = built(name), "CRRCR"
    levels = len(model.down_blocks)
    site = f"down_blocks.1..up_blocks.{levels - 2}:feature"
    plan = plan_of(model, **{site: actions})
    untouched = sample(name, model)
    wanted = by_hooks(name, model, [f"up_blocks.{levels - 2}"], actions)
    with festina.accelerate(model, plan) as run:
        assert torch.equal(sample(name, model, run), wanted)
        report = run.report()
    assert not torch.equal(wanted, untouched)
    assert torch.equal(sample(name, model), untouched)
    traced = trace(model, Call((), inputs(name, model, 0)))
    table = mac_table(model, traced, plan.sites)
    assert report.macs == plan_macs(plan, table).total
    # What is kept is the one tensor that comes up, not the skip connections below.
    (up,) = traced.returned[f"up_blocks.{levels - 2}"]
    assert report.peak_bytes == held_bytes(plan, model, traced, 4) == 4 * sum(each.numbers for each in up)


@pytest.mark.parametrize("name", UNETS)
def test_the_whole_encoder_is_faster_diffusion(name):
    """The decoder runs on remembered skip connections (Faster Diffusion, arXiv 2312.09608)."""
    model, actions = built(name), "CRCRR"
    encoder = [f"down_blocks.{n}" for n in range(len(model.down_blocks))] + ["mid_block"]
    plan = plan_of(model, **{"down_blocks.0..mid_block:feature": actions})
    wanted = by_hooks(name, model, encoder, actions)
    with festina.accelerate(model, plan) as run:
        assert torch.equal(sample(name, model, run), wanted)
        report = run.report()
    traced = trace(model, Call((), inputs(name, model, 0)))
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)
    assert report.macs == plan_macs(plan, mac_table(model, traced, plan.sites)).total


def test_a_run_of_blocks_holds_one_tensor():
    name, actions = "PixArtTransformer2DModel", "CRRCR"
    model = built(name)
    plan = plan_of(model, **{"transformer_blocks.0..2:residual": actions})
    wanted = by_hooks(name, model, ["transformer_blocks.2"], actions, added="transformer_blocks.0")
    with festina.accelerate(model, plan) as run:
        assert torch.equal(sample(name, model, run), wanted)
        report = run.report()
    traced = trace(model, Call((), inputs(name, model, 0)))
    assert report.peak_bytes == 4 * traced.returned["transformer_blocks.2"][0][0].numbers
    assert report.macs == plan_macs(plan, mac_table(model, traced, plan.sites)).total


def test_a_run_of_blocks_over_two_streams():
    """Both streams of FLUX are kept, each with its own change; single blocks return them too."""
    name, actions = "FluxTransformer2DModel", "CRCRR"
    model = built(name)
    names = ("transformer_blocks.1..2:residual", "single_transformer_blocks.0..1:residual")
    with festina.accelerate(model, plan_of(model, **dict.fromkeys(names, actions))) as run:
        served = sample(name, model, run)
        assert run.report().served == dict.fromkeys(names, 3)
    assert served.isfinite().all()
    # With the same input in every step the stored change is the true one.
    with torch.no_grad(), festina.accelerate(model, plan_of(model, **dict.fromkeys(names, actions))) as run:
        run.start(STEPS)
        outputs = []
        for _ in range(STEPS):
            outputs.append(model(**inputs(name, model, 0)).sample)
            run.next_step()
    for output in outputs:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-5)


def test_sites_within_a_served_run_are_not_visited():
    name = "PixArtTransformer2DModel"
    model = built(name)
    plan = plan_of(
        model,
        **{
            "transformer_blocks.0..1:residual": "CRCRR",
            "transformer_blocks.1:residual": "CCRCC",
            "transformer_blocks.1.attn1": "CCCRR",
            "transformer_blocks.2.ff": "CRRRR",
        },
    )
    with festina.accelerate(model, plan) as run:
        sample(name, model, run)
        report = run.report()
    assert report.computed == {
        "transformer_blocks.0..1:residual": 2,
        "transformer_blocks.1:residual": 1,
        "transformer_blocks.1.attn1": 1,
        "transformer_blocks.2.ff": 1,
    }
    traced = trace(model, Call((), inputs(name, model, 0)))
    assert report.macs == plan_macs(plan, mac_table(model, traced, plan.sites)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


def test_skipping_a_run_passes_its_input_on():
    name = "PixArtTransformer2DModel"
    model = built(name)
    with festina.accelerate(model, plan_of(model, **{"transformer_blocks.0..2:residual": "CSSCS"})) as run:
        skipped = sample(name, model, run)
        assert run.report().peak_bytes == 0
    handles = [block.register_forward_hook(lambda module, args, output: args[0]) for block in model.transformer_blocks]
    without = sample(name, model)
    for handle in handles:
        handle.remove()
    untouched = sample(name, model)
    for step, action in enumerate("CSSCS"):
        assert torch.equal(skipped[step], (without if action == "S" else untouched)[step])


def test_a_block_that_ends_a_stream_returns_nothing_for_it():
    """The last block of Stable Diffusion 3 returns no text: None, served too."""
    name = "SD3Transformer2DModel"
    model = built(name)
    last = f"transformer_blocks.{len(model.transformer_blocks) - 1}:residual"
    with festina.accelerate(model, plan_of(model, **{last: "CRCRR"})) as run:
        assert sample(name, model, run).isfinite().all()
        assert run.report().served == {last: 3}


def test_blocks_whose_residual_cannot_be_told_are_refused():
    class Shuffling(torch.nn.Module):
        """Two streams of one shape, returned in an order that nobody knows."""

        def __init__(self):
            super().__init__()
            self.to_q, self.ff = (
                torch.nn.Linear(4, 4),
                torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)),
            )
            self.attn = torch.nn.ModuleDict({"to_q": self.to_q})

        def forward(self, one, other):
            return other + self.ff(other), one + self.to_q(one)

    class TwoStreams(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Shuffling(), Shuffling()])

        def forward(self, one, other):
            for block in self.blocks:
                one, other = block(one, other)
            return one

    from festina.sites import Row, Stack, register

    register(Row("TwoStreams", (Stack("blocks", components=("ff",)),)))
    model = TwoStreams()
    with festina.accelerate(model, plan_of(model, **{"blocks.0:residual": "CRRRR"})) as run:
        run.start(STEPS)
        with pytest.raises(FestinaError, match=r"could be a new value of one, other.*streams="):
            model(torch.zeros(2, 4), torch.zeros(2, 4))
