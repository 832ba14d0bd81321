"""cache-dit's DBCache and DeepCache beside plans: what agrees, and what differs."""

import io
import logging

import pytest
import torch
from peer_runs import (
    LAST,
    STEPS,
    WITHIN,
    agree,
    by_peer,
    by_plan,
    differ,
    flux,
    guided,
    latents,
    pixart,
    plan_of,
    stack_plan,
)
from pipelines import unets

from festina import FestinaError
from festina.gates import Gate
from festina.peers import PeerError, peer_named, running
from festina.sites import find_denoiser, first_blocks

MASK = [1, 1, 0, 0, 1, 0, 1, 0, 0, 1]


def masked(mask=MASK, first=1, last=0, **more):
    return {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "max_warmup_steps": 0,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
        **more,
    }


def letters(mask, served="R"):
    return "".join("C" if computes else served for computes in mask)


@pytest.fixture(scope="module")
def cache_dit():
    return pytest.importorskip("cache_dit")


@pytest.mark.parametrize("build", [pixart, flux])
@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, 1), (2, 1)])
def test_a_mask_of_cache_dit_is_a_static_plan_for_the_middle_of_the_stack(cache_dit, build, first, last):
    """The first and the last blocks run in every step; those of FLUX's two lists are counted as one list."""
    pipe = build()
    middle = {pixart: "transformer_blocks.2.attn1.to_q", flux: "single_transformer_blocks.0.attn.to_q"}[build]
    plan = stack_plan(pipe, letters(MASK), first, last)
    ours, ran = by_plan(pipe, latents, plan, middle, LAST[build])
    theirs, theirs_ran = by_peer(pipe, latents, "DBCache", masked(first=first, last=last), middle, LAST[build])
    assert theirs_ran == ran
    assert ran[middle] == [step for step, computes in enumerate(MASK) if computes]
    assert ran[LAST[build]] == (list(range(STEPS)) if last else ran[middle])
    agree(theirs, ours)


def test_a_mask_of_cache_dit_may_not_begin_with_0_where_a_plan_computes(cache_dit):
    """It has nothing to serve in the first step and fails; a plan computes there whatever it says."""
    pipe = pixart()
    mask = [0, *MASK[1:]]
    with pytest.raises(PeerError, match=r"DBCache \(cache-dit .*\) broke during a run: AssertionError: .*must be set"):
        by_peer(pipe, latents, "DBCache", masked(mask))
    one, _ = by_plan(pipe, latents, stack_plan(pipe, letters(mask), 1))
    other, _ = by_plan(pipe, latents, stack_plan(pipe, letters(MASK), 1))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("build", "threshold"), [(pixart, 0.6), (flux, 0.75)])
@pytest.mark.parametrize("longest", [-1, 1])
def test_dbcache_is_a_gate_on_the_residual_of_the_first_blocks(cache_dit, build, threshold, longest):
    """After a warm-up, and with at most so many steps served in a row, where -1 is no limit."""
    pipe, leaf = build(), LAST[build]
    probe = first_blocks(find_denoiser(pipe))
    gate = Gate(probe, "residual", "computed", threshold, longest=max(0, longest))
    plan = stack_plan(pipe, "CC" + "G" * (STEPS - 2), first=1, gate=gate)
    knobs = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 2,
        "residual_diff_threshold": threshold,
        "max_continuous_cached_steps": longest,
    }
    ours, ran = by_plan(pipe, latents, plan, leaf)
    theirs, theirs_ran = by_peer(pipe, latents, "DBCache", knobs, leaf)
    assert theirs_ran == ran
    assert 2 < len(ran[leaf]) < STEPS, "this threshold decides nothing"
    agree(theirs, ours)


def test_at_a_threshold_of_1_dbcache_no_longer_looks(cache_dit):
    """From 1 on it serves every step after the warm-up; a gate still computes where the change is larger."""
    pipe, leaf = flux(), LAST[flux]
    knobs = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    _, ran = by_peer(pipe, latents, "DBCache", knobs, leaf)
    assert ran[leaf] == [0]
    gate = Gate(first_blocks(pipe.transformer), "residual", "computed", 1.0)
    _, ran = by_plan(pipe, latents, stack_plan(pipe, "C" + "G" * (STEPS - 1), 1, gate=gate), leaf)
    assert len(ran[leaf]) > 1


@pytest.mark.parametrize(
    ("mask", "order", "actions"),
    [
        ([1, 1, 1, 1, 0, 0, 1, 0, 0, 1], 1, "CCCC11C11C"),
        ([1, 1, 1, 1, 0, 0, 1, 0, 0, 1], 2, "CCCC11C22C"),
        # What a plan would forecast from the steps 0 and 1 is held.
        (MASK, 1, "CCRRC1C11C"),
    ],
)
def test_the_taylor_calibrator_of_cache_dit_is_late_by_some_steps(cache_dit, mask, order, actions):
    """It forecasts what is served in the basis "taylor", but takes no difference before the step 3, so that an order
    is there later than in a plan, where two computed values are enough for a line."""
    pipe = pixart()
    theirs, _ = by_peer(pipe, latents, "DBCache", masked(mask, taylorseer_order=order))
    (site,) = stack_plan(pipe, actions, 1).sites
    ours, _ = by_plan(pipe, latents, plan_of(pipe, {site: actions}, basis="taylor"))
    agree(theirs, ours)
    at_once, _ = by_plan(pipe, latents, plan_of(pipe, {site: letters(mask, str(order))}, basis="taylor"))
    assert torch.allclose(at_once, ours, **WITHIN) == (actions == letters(mask, str(order)))


def test_cache_dit_hands_one_call_of_flux_the_values_of_another(cache_dit):
    """It counts calls: with guidance in a call of its own its mask of ten steps is used up after five, and the calls
    that are served get what any call computed last. A plan keeps the two calls of a step apart."""
    pipe, leaf = flux(), LAST[flux]
    theirs, ran = by_peer(pipe, guided, "DBCache", masked([1, 0] * STEPS), leaf)
    assert ran[leaf] == list(range(0, 2 * STEPS, 2))
    ours, ran = by_plan(pipe, guided, stack_plan(pipe, "CR" * (STEPS // 2), 1), leaf)
    assert ran[leaf] == [call for call in range(2 * STEPS) if call // 2 % 2 == 0]
    differ(theirs, ours)


@pytest.fixture
def shown(cache_dit):
    """What cache-dit writes to the terminal, and the handler by which it does."""
    (handler,) = [each for each in logging.getLogger("CACHE_DIT").handlers if type(each) is logging.StreamHandler]
    stream = io.StringIO()
    before = handler.setStream(stream)
    yield stream, handler
    handler.setStream(before)


def test_cache_dit_tells_the_terminal_nothing_while_its_peer_runs(cache_dit, shown):
    stream, handler = shown
    level, pipe = handler.level, pixart()
    assert level < logging.ERROR
    with running(pipe, peer_named("DBCache", masked())):
        latents(pipe)
        logging.getLogger("CACHE_DIT").error("but for errors")
    assert stream.getvalue().count("\n") == 1
    assert "but for errors" in stream.getvalue()
    assert handler.level == level
    with pytest.raises(PeerError, match="could not be switched on"), running(pipe, peer_named("DBCache", {"x": 1})):
        pass
    assert handler.level == level
    # By itself it tells a lot.
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig())
    cache_dit.disable_cache(pipe)
    assert stream.getvalue().count("\n") > 3


# DeepCache


def unet(scheduler):
    """A tiny Stable Diffusion, and how to run it for some steps."""
    name = {"ddim": "sd2", "pndm": "sd15"}[scheduler]
    tiny = unets.PIPELINES[name]
    return tiny.build(), lambda pipe: tiny.output(pipe(**tiny.call(STEPS, 1))).clone()


DEEP, SHALLOW = "mid_block.resnets.0.conv1", "up_blocks.3.resnets.2.conv1"


@pytest.mark.parametrize(
    ("branch", "site"), [(2, "down_blocks.1..up_blocks.2:feature"), (5, "down_blocks.2..up_blocks.1:feature")]
)
@pytest.mark.parametrize("interval", [2, 3])
def test_deepcache_between_levels_is_a_cut_at_the_same_place(branch, site, interval):
    """Three branches per level; the last of them lets the whole level run, which is where a plan can cut. A plan also
    runs the level's downsampler, whose result nothing reads, and keeps one tensor instead of all below."""
    pytest.importorskip("DeepCache")
    pipe, render = unet("ddim")
    plan = plan_of(pipe, {site: "".join("C" if step % interval == 0 else "R" for step in range(STEPS))})
    ours, ran = by_plan(pipe, render, plan, DEEP, SHALLOW)
    knobs = {"cache_interval": interval, "cache_branch_id": branch}
    theirs, theirs_ran = by_peer(pipe, render, "DeepCache", knobs, DEEP, SHALLOW)
    assert theirs_ran == ran == {DEEP: list(range(0, STEPS, interval)), SHALLOW: list(range(STEPS))}
    assert torch.equal(theirs, ours)


def test_deepcache_within_a_level_is_no_plan():
    """Branch 0, its usual one, runs one layer of the last level only and serves what the layer before returned. A plan
    serves whole levels; the cut nearest to it runs the last level as a whole, and gives something else."""
    pytest.importorskip("DeepCache")
    pipe, render = unet("ddim")
    knobs = {"cache_interval": 2, "cache_branch_id": 0}
    before, first = "up_blocks.3.resnets.1.conv1", "down_blocks.0.resnets.0.conv1"
    theirs, ran = by_peer(pipe, render, "DeepCache", knobs, before, SHALLOW, first)
    seldom = list(range(0, STEPS, 2))
    assert ran == {before: seldom, SHALLOW: list(range(STEPS)), first: seldom}
    with pytest.raises(FestinaError, match="sites are not in this UNet2DConditionModel"):
        by_plan(pipe, render, plan_of(pipe, {"up_blocks.3.attentions.1:feature": "CR" * 5}))
    nearest, _ = by_plan(pipe, render, plan_of(pipe, {"down_blocks.1..up_blocks.2:feature": "CR" * 5}))
    differ(theirs, nearest)


def test_deepcache_takes_a_repeated_time_step_for_one_step():
    """It looks the time step up in the scheduler's list. PNDM's second and third entry are the same, so the third is
    the second once more, and the count goes on with the fourth. A plan counts entries."""
    pytest.importorskip("DeepCache")
    pipe, render = unet("pndm")
    theirs, ran = by_peer(pipe, render, "DeepCache", {"cache_interval": 2, "cache_branch_id": 2}, DEEP)
    times = pipe.scheduler.timesteps.tolist()
    entries = len(times)
    assert times[1] == times[2]
    computed = [entry for entry in range(0, entries, 2) if entry != 2]
    assert ran[DEEP] == computed
    actions = "".join("C" if entry in computed else "R" for entry in range(entries))
    ours, _ = by_plan(pipe, render, plan_of(pipe, {"down_blocks.1..up_blocks.2:feature": actions}))
    assert torch.equal(theirs, ours)


def test_deepcache_wants_the_time_step_by_its_place():
    pytest.importorskip("DeepCache")
    pipe, _ = unet("ddim")
    inputs = {"sample": torch.zeros(1, 4, 4, 4), "timestep": torch.tensor(1), "encoder_hidden_states": torch.zeros(1)}
    with (
        pytest.raises(PeerError, match=r"DeepCache .* broke during a run: IndexError"),
        running(pipe, peer_named("DeepCache", {"cache_interval": 2, "cache_branch_id": 0})),
    ):
        pipe.unet(**inputs)
