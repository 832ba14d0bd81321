"""Calibration: the numbers are those of a straightforward measurement, the pipeline is as before, work is resumed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pipelines import images, unets, videos
from tiny import PROMPT, dit_pipeline, flux_pipeline, pixart_pipeline
from torch.utils._pytree import tree_leaves

from festina import Calibration, FestinaError, calibrate
from festina.calibration.record import LAGS, MEASURES
from festina.methods import deepcache
from festina.sites import component_sites, find_denoiser, stack_runs

STEPS = 5
OTHER = "a large blue square on a white background"
PIXART = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}
FLUX = {"height": 16, "width": 16, "max_sequence_length": 20, "negative_prompt": "black", "true_cfg_scale": 3.0}
TEXT = {"height": 64, "width": 64}


class Recorder:
    """Outputs of modules in the order in which they come, by path; inputs of one of them by `in PATH`."""

    def __init__(self, denoiser, outputs, inputs=()):
        self.seen = {}
        self.handles = [self._out(denoiser, path) for path in outputs] + [self._in(denoiser, path) for path in inputs]

    def _out(self, denoiser, path):
        def keep(module, args, output):
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            self.seen.setdefault(path, []).append([tensor.double().clone() for tensor in tensors])

        return denoiser.get_submodule(path).register_forward_hook(keep)

    def _in(self, denoiser, path):
        def keep(module, args, kwargs):
            given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self.seen.setdefault(f"in {path}", []).append([given.double().clone()])

        return denoiser.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)

    def remove(self):
        for handle in self.handles:
            handle.remove()


def flat(values):
    return torch.cat([value.flatten() for value in values])


def l1(one, other):
    return (flat(one) - flat(other)).abs().sum().item()


def size(value):
    return flat(value).abs().sum().item()


def wanted_lags(outputs):
    """SmoothCache's errors of one site, from its outputs in each step."""
    return [
        [
            l1(outputs[i + lag], outputs[i]) / size(outputs[i + lag]) if i + lag < len(outputs) else None
            for i in range(len(outputs))
        ]
        for lag in range(1, LAGS + 1)
    ]


def wanted_changes(values):
    return [None] + [l1(new, old) / size(old) for old, new in pairwise(values)]


def wanted_distances(values):
    return [[l1(values[i], values[j]) for j in range(i)] for i in range(len(values))]


def wanted_magnitudes(residuals):
    rows = [[None], [None], [None]]
    for old, new in pairwise(residuals):
        ratio = new.norm(dim=-1) / old.norm(dim=-1)
        cosine = (new * old).sum(-1) / (new.norm(dim=-1) * old.norm(dim=-1))
        for row, value in zip(rows, (ratio.mean(), ratio.std(), 1 - cosine.mean()), strict=True):
            row.append(value.item())
    return rows


def same(found, wanted, rtol=2e-4):
    """Whether numbers in rows agree, with None at the same places."""
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert [number is None for number in row] == [number is None for number in other]
        known = [(a, b) for a, b in zip(row, other, strict=True) if a is not None]
        np.testing.assert_allclose([a for a, _ in known], [b for _, b in known], rtol=rtol, atol=1e-6)


def on_pixart(prompts=(PROMPT,), steps=STEPS, **others):
    return calibrate(pixart_pipeline(), list(prompts), steps, guidance=4.5, call=PIXART, **others)


def test_numbers_of_one_branch_are_those_of_plain_hooks():
    pipe = pixart_pipeline()
    sites = [site.name for site in component_sites(pipe.transformer)]
    recorder = Recorder(
        pipe.transformer,
        [*sites, "transformer_blocks.2", ""],
        ["transformer_blocks.0", "transformer_blocks.0.attn1"],
    )
    found = calibrate(pipe, [PROMPT], STEPS, guidance=4.5, call=PIXART)
    recorder.remove()
    (record,) = found.branches.values()
    seen = recorder.seen
    assert len(seen[""]) == STEPS
    assert set(record.lags) == set(found.sites) == set(sites)
    for site in sites:
        same(record.lags[site], wanted_lags(seen[site]))
    residuals = [
        out[0] - given[0]
        for out, given in zip(seen["transformer_blocks.2"], seen["in transformer_blocks.0"], strict=True)
    ]
    same(record.magnitudes, wanted_magnitudes(residuals))
    same(record.distances, wanted_distances([[residual] for residual in residuals]))
    (changes,) = record.changes
    same(changes, [wanted_changes(seen["in transformer_blocks.0.attn1"]), wanted_changes(seen[""])])
    assert found.feature == stack_runs(pipe.transformer)
    assert found.sampler == "DPMSolverMultistepScheduler"


def test_branches_of_guidance_are_kept_apart_and_averaged():
    pipe = flux_pipeline(guidance=False)
    block, last = "transformer_blocks.1.attn", "single_transformer_blocks.1"
    recorder = Recorder(pipe.transformer, [block, last, ""], ["transformer_blocks.0"])
    found = calibrate(pipe, [PROMPT], STEPS, call=FLUX)
    recorder.remove()
    assert len(found.branches) == 2
    for place, record in enumerate(found.branches.values()):
        seen = {name: values[place::2] for name, values in recorder.seen.items()}
        same(record.lags[block], wanted_lags(seen[block]))
        # The picture's stream is the second that a block returns.
        residuals = [out[1] - given[0] for out, given in zip(seen[last], seen["in transformer_blocks.0"], strict=True)]
        same(record.magnitudes, wanted_magnitudes(residuals))
        same(record.distances, wanted_distances([[residual] for residual in residuals]))
        same([record.changes[0][1]], [wanted_changes(seen[""])])
    one, other = found.branches.values()
    assert one.lags != other.lags
    errors = found.lag_errors([block])
    assert errors[0, 2] == pytest.approx((one.lags[block][0][2] + other.lags[block][0][2]) / 2)
    assert np.isnan(errors[2, STEPS - 3 :]).all()
    ratios = found.magnitude_ratios()
    assert ratios[0] == 1
    assert ratios[2] == pytest.approx((one.magnitudes[0][2] + other.magnitudes[0][2]) / 2)
    distances = found.distances()
    assert (distances == distances.T).all()
    assert distances[3, 1] == pytest.approx((one.distances[3][1] + other.distances[3][1]) / 2)
    assert found.changes().shape == (2 * (STEPS - 1), 2)


def test_a_unet_is_measured_where_deepcache_cuts_it():
    pipe = unets.build_sd2()
    recorder = Recorder(pipe.unet, ["up_blocks.2", "mid_block.attentions.0"])
    found = calibrate(pipe, [PROMPT], STEPS, guidance=5.0, call=TEXT)
    recorder.remove()
    assert found.measures == ("lags", "distances")
    assert found.feature == deepcache(pipe, STEPS, 2).sites
    (record,) = found.branches.values()
    same(record.distances, wanted_distances(recorder.seen["up_blocks.2"]))
    assert (record.magnitudes, record.changes) == ((), ())
    with pytest.raises(FestinaError, match="UNet2DConditionModel has no changes, magnitudes to measure"):
        calibrate(pipe, [PROMPT], STEPS, measures=["magnitudes", "changes"])


def test_experts_are_measured_one_after_the_other():
    pipe = videos.PIPELINES["wan22"].build()
    call = videos.PIPELINES["wan22"].call(6, 1)
    further = {name: value for name, value in call.items() if name not in ("prompt", "generator", "guidance_scale")}
    found = calibrate(pipe, [PROMPT], 6, guidance=call["guidance_scale"], call=further)
    second = [name for name in found.branches if name.startswith("transformer_2/")]
    assert len(found.branches) == 2 * len(second) == 4
    ratios = np.array(found.magnitude_ratios())
    (switch,) = np.flatnonzero(np.isnan(ratios))
    distances = found.distances()
    assert np.isinf(distances[switch:, :switch]).all()
    assert np.isfinite(distances[switch:, switch:]).all()
    assert np.isfinite(distances[:switch, :switch]).all()
    errors = found.lag_errors(found.sites)
    assert np.isnan(errors[0, switch - 1])
    assert np.isfinite(errors[0, : switch - 1]).all()


@pytest.mark.parametrize("name", ["latte", "cogvideox", "sd3"])
def test_other_families(name):
    tiny = {**images.PIPELINES, **videos.PIPELINES}[name]
    call = tiny.call(3, 1)
    further = {key: value for key, value in call.items() if key not in ("prompt", "generator", "guidance_scale")}
    found = calibrate(tiny.build(), [PROMPT], 3, guidance=call["guidance_scale"], call=further)
    assert found.measures == MEASURES
    assert found.changes().shape == (2, 2)
    assert np.isfinite(found.magnitude_ratios()).all()


def test_class_labels_and_schedulers_with_entries_of_their_own():
    found = calibrate(dit_pipeline(), ["3", "1"], 3, guidance=4.0, call={"output_type": "np"})
    assert found.pictures == (("3", 0), ("1", 1))
    with pytest.raises(FestinaError, match="takes class labels; 'a cat' is no number"):
        calibrate(dit_pipeline(), ["a cat"], 3)
    pipe = unets.build_sd15()
    with pytest.raises(FestinaError, match="the plan has 4 steps, this run 5"):
        calibrate(pipe, [PROMPT], 4, call=TEXT)
    found = calibrate(pipe, [PROMPT], 5, call={**TEXT, "num_inference_steps": 4})
    assert np.isfinite(found.distances()).all()


def test_pictures_do_not_depend_on_each_other_nor_on_their_order():
    both = on_pixart([PROMPT, OTHER], seeds=[3, 4])
    one, other = on_pixart([PROMPT], seeds=[3]), on_pixart([OTHER], seeds=[4])
    assert one.with_picture((OTHER, 4), other.branches) == both
    swapped = on_pixart([OTHER, PROMPT], seeds=[4, 3])
    # The sum of two numbers does not depend on their order; what is kept for each picture changes places.
    (mine,), (its,) = both.branches.values(), swapped.branches.values()
    assert (mine.lags, mine.magnitudes, mine.distances) == (its.lags, its.magnitudes, its.distances)
    assert mine.changes == its.changes[::-1]
    assert both.lag_errors(both.sites)[0, 0] == pytest.approx(
        (one.lag_errors(one.sites)[0, 0] + other.lag_errors(one.sites)[0, 0]) / 2
    )
    assert len(both.changes()) == 2 * len(one.changes())


def test_only_what_is_asked_for_is_measured():
    for measure in MEASURES:
        found = on_pixart(measures=[measure])
        assert found.measures == (measure,)
        (record,) = found.branches.values()
        full = next(iter(on_pixart().branches.values()))
        for name in MEASURES:
            there = getattr(record, name)
            assert there == getattr(full, name) if name == measure else not there


def test_a_run_that_fails_leaves_the_pictures_before_it(tmp_path):
    pipe = pixart_pipeline()
    plain, calls = snapshot(pipe), [0]

    def fail(module, args):
        calls[0] += 1
        if calls[0] == STEPS + 3:
            raise RuntimeError("out of memory")

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(pipe, [PROMPT, OTHER], STEPS, guidance=4.5, call=PIXART, out=tmp_path / "file.json")
    handle.remove()
    assert Calibration.load(tmp_path / "file.json").pictures == ((PROMPT, 0),)
    assert snapshot(pipe) == plain
    assert not hooks_of(pipe)
    again = calibrate(pipe, [PROMPT, OTHER], STEPS, guidance=4.5, call=PIXART, out=tmp_path / "file.json")
    assert again == on_pixart([PROMPT, OTHER])


def snapshot(pipe):
    """Attributes of all objects concerned, methods by identity; what a scheduler counts in a run is its own."""
    owners = [pipe, pipe.scheduler, *pipe.transformer.modules()]
    return [{name: id(value) if callable(value) else None for name, value in vars(owner).items()} for owner in owners]


def hooks_of(pipe):
    return [
        path
        for path, module in find_denoiser(pipe).named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._forward_hooks_with_kwargs
    ]


def test_the_pipeline_draws_what_it_draws_and_is_as_before():
    pipe = pixart_pipeline()
    before, outputs = snapshot(pipe), []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
    torch.manual_seed(0)
    arguments = {**PIXART, "guidance_scale": 4.5, "num_inference_steps": STEPS, "output_type": "latent"}
    pipe(PROMPT, generator=torch.Generator().manual_seed(0), **arguments)
    plain = list(outputs)
    outputs.clear()
    calibrate(pipe, [PROMPT], STEPS, guidance=4.5, call=PIXART)
    handle.remove()
    assert len(outputs) == STEPS
    assert all(torch.equal(*pair) for pair in zip(plain, outputs, strict=True))
    assert snapshot(pipe) == before
    assert not hooks_of(pipe)


def test_what_cannot_be_calibrated_is_refused():
    pipe = pixart_pipeline()
    for arguments, message in (
        ({"prompts": []}, "0 prompts and 0 seeds"),
        ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
        ({"steps": 1}, "at least 2 steps"),
        ({"measures": ["speed"]}, r"cannot measure \['speed'\]"),
        ({"measures": []}, r"cannot measure \[\]"),
        ({"call": {"generator": 1}}, r"decide \['generator'\]"),
        ({"call": {"true_cfg_scale": 2.0}}, "its call takes no true_cfg_scale"),
        ({"call": {"height": torch.ones(1)}}, "further arguments of a calibration's call are JSON"),
    ):
        with pytest.raises(FestinaError, match=message):
            calibrate(pipe, **{"prompts": [PROMPT], "steps": STEPS, **arguments})
    with pytest.raises(FestinaError, match="alone draws nothing"):
        calibrate(pipe.transformer, [PROMPT], STEPS)
    pipe.transformer.transformer_blocks[0].compile()
    with pytest.raises(FestinaError, match="is compiled"):
        calibrate(pipe, [PROMPT], STEPS)


def test_pictures_with_other_branches_do_not_mix():
    found = on_pixart()
    (record,) = found.branches.values()
    with pytest.raises(FestinaError, match=r"was drawn with the branches \['a', 'b'\]"):
        found.with_picture((OTHER, 1), {"a": record, "b": record})
    with pytest.raises(FestinaError, match="if and only if there are pictures"):
        replace(found, pictures=())
