"""Where diffusers' own caches do the same as a plan, results agree; where they do not, the difference is shown here.

docs/peers.md says the same in words. The versions are those of the packages that are installed.
"""

from itertools import pairwise

import pytest
import torch
from peer_runs import (
    BLOCKS,
    LAST,
    STEPS,
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

import festina
from festina import FestinaError
from festina.gates import Gate
from festina.peers import PeerError, calibrated, peer_named, running
from festina.sites import component_sites, find_denoiser, first_blocks


def gate_of(pipe, threshold):
    return Gate(first_blocks(find_denoiser(pipe)), "residual", "computed", threshold)


# First-Block-Cache


@pytest.mark.parametrize(("build", "threshold"), [(pixart, 0.5), (flux, 0.7)])
def test_first_block_cache_is_a_gate_on_the_residual_of_the_first_block(build, threshold):
    """The picture's stream decides; of FLUX the text's is served too. No step has to compute but the first."""
    pipe, leaf = build(), LAST[build]
    plan = stack_plan(pipe, "C" + "G" * (STEPS - 1), first=1, gate=gate_of(pipe, threshold))
    ours, ran = by_plan(pipe, latents, plan, leaf)
    theirs, theirs_ran = by_peer(pipe, latents, "FirstBlockCache", {"threshold": threshold}, leaf)
    assert theirs_ran == ran
    assert 1 < len(ran[leaf]) < STEPS, "this threshold decides nothing"
    agree(theirs, ours)


def test_first_block_cache_decides_for_each_call_of_a_step():
    """Both calls of a step that FLUX guides with decide for themselves, as the gate's decider "call" lets them."""
    pipe, leaf = flux(), LAST[flux]
    plan = stack_plan(pipe, "C" + "G" * (STEPS - 1), first=1, gate=gate_of(pipe, 0.7))
    ours, ran = by_plan(pipe, guided, plan, leaf)
    theirs, theirs_ran = by_peer(pipe, guided, "FirstBlockCache", {"threshold": 0.7}, leaf)
    assert theirs_ran == ran
    branches = [[call // 2 for call in ran[leaf] if call % 2 == branch] for branch in (0, 1)]
    assert branches[0] != branches[1], "both calls decide alike, so nothing is shown"
    agree(theirs, ours)


def test_first_block_cache_serves_at_its_threshold_where_a_gate_computes():
    """It computes above its threshold, a gate from its threshold on. That is one and the same but where nothing moves:
    at threshold 0 the same input is served by First-Block-Cache and computed by a gate."""
    pipe, leaf = flux(), LAST[flux]
    denoiser, inputs = pipe.transformer, []
    handle = denoiser.register_forward_pre_hook(lambda module, args, kwargs: inputs.append(kwargs), with_kwargs=True)
    latents(pipe)
    handle.remove()

    def same_input(_):
        with torch.no_grad():
            for _ in range(4):
                with denoiser.cache_context("cond"):
                    last = denoiser(**inputs[0])[0]
        return last

    theirs, ran = by_peer(pipe, same_input, "FirstBlockCache", {"threshold": 0.0}, leaf)
    assert ran[leaf] == [0]
    plan = stack_plan(pipe, "CGGG", first=1, gate=gate_of(pipe, 0.0))
    with festina.accelerate(denoiser, plan) as run, torch.no_grad():
        run.start(4)
        for _ in range(4):
            ours = denoiser(**inputs[0])[0]
            run.next_step()
        assert run.report().computed == dict.fromkeys(plan.sites, 4)
    agree(theirs, ours)


# TaylorSeer


def taylor_rule(steps, warm_up, interval):
    return [s < warm_up or (s - warm_up - 1) % interval == 0 for s in range(steps)]


def test_the_steps_that_taylorseer_of_diffusers_computes():
    """After the warm-up it forecasts one step, computes the next, and then every few; by hand."""
    computed = [step for step, computes in enumerate(taylor_rule(15, 3, 5)) if computes]
    assert computed == [0, 1, 2, 4, 9, 14]
    assert [step for step, computes in enumerate(taylor_rule(10, 2, 3)) if computes] == [0, 1, 3, 6, 9]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("build", "patterns"),
    [(pixart, [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]), (flux, [r"(single_)?transformer_blocks\.\d+\.attn"])],
)
def test_taylorseer_is_forecasts_in_the_basis_taylor(build, patterns, order):
    """On the same modules, with factors in single precision."""
    pipe, leaf = build(), LAST[build]
    actions = "".join("C" if computes else str(order) for computes in taylor_rule(STEPS, 3, 3))
    sites = [s.name for s in component_sites(pipe.transformer) if build is pixart or s.part == "attn"]
    plan = plan_of(pipe, dict.fromkeys(sites, actions), basis="taylor")
    knobs = {
        "cache_interval": 3,
        "disable_cache_before_step": 3,
        "max_order": order,
        "cache_identifiers": patterns,
        "taylor_factors_dtype": "float32",
    }
    ours, ran = by_plan(pipe, latents, plan, leaf)
    theirs, theirs_ran = by_peer(pipe, latents, "TaylorSeerCache", knobs, leaf)
    assert theirs_ran == ran == {leaf: [0, 1, 2, 4, 7]}
    agree(theirs, ours)
    # Halved factors are its default, and they show.
    halved, _ = by_peer(pipe, latents, "TaylorSeerCache", {**knobs, "taylor_factors_dtype": "bfloat16"})
    differ(halved, ours)
    torch.testing.assert_close(halved, ours, rtol=0.1, atol=0.1)


def test_taylorseer_by_default_attaches_to_nothing_where_attentions_are_numbered():
    """Its patterns have to match a whole name, and `attn1` does not end in `attn`."""
    pipe = pixart()
    with (
        pytest.raises(FestinaError, match="attached to nothing in this PixArtTransformer2DModel"),
        running(pipe, peer_named("TaylorSeerCache", {"cache_interval": 3})),
    ):
        latents(pipe)


# MagCache


def magcache_rule(ratios, threshold, longest, retained):
    """Which steps compute, from the published rule (arXiv 2506.09045) and what diffusers retains."""
    product, error, served, mask = 1.0, 0.0, 0, []
    for step, ratio in enumerate(ratios):
        computes = True
        if step >= int(retained * len(ratios) + 0.5):
            product, served = product * ratio, served + 1
            error += abs(1 - product)
            computes = not (step > 0 and error <= threshold and served <= longest)
        if computes:
            product, error, served = 1.0, 0.0, 0
        mask.append(computes)
    return mask


@pytest.mark.parametrize("build", [pixart, flux])
def test_magcache_is_a_static_plan_for_the_whole_stack(build, capsys):
    """The text's stream of FLUX is not served by MagCache; nothing reads it behind the stack, so nothing differs."""
    pipe, leaf = build(), LAST[build]
    unset = peer_named("MagCache", {"threshold": 0.6, "max_skip_steps": 2, "num_inference_steps": STEPS})
    peer = calibrated(pipe, unset, lambda: latents(pipe))
    assert "Calibration" not in capsys.readouterr().out
    ratios = peer.knobs["mag_ratios"]
    assert ratios == pytest.approx(stack_ratios(pipe), rel=1e-4)
    mask = magcache_rule(ratios, 0.6, 2, 0.2)
    assert 2 < sum(mask) < STEPS
    plan = stack_plan(pipe, "".join("C" if computes else "R" for computes in mask))
    ours, ran = by_plan(pipe, latents, plan, leaf)
    theirs, theirs_ran = by_peer(pipe, latents, "MagCache", peer.knobs, leaf)
    assert theirs_ran == ran == {leaf: [step for step, computes in enumerate(mask) if computes]}
    agree(theirs, ours)


def stack_ratios(pipe):
    """mean over tokens of |residual of the stack| / |that of the step before|, measured by hooks."""
    denoiser, entered, residuals = pipe.transformer, [], []
    first = denoiser.transformer_blocks[0]
    last = getattr(denoiser, "single_transformer_blocks", denoiser.transformer_blocks)[-1]

    def enter(module, args, kwargs):
        entered.append(args[0] if args else kwargs["hidden_states"])

    def leave(module, args, output):
        residuals.append((output[1] if isinstance(output, tuple) else output) - entered[-1])

    handles = [first.register_forward_pre_hook(enter, with_kwargs=True), last.register_forward_hook(leave)]
    latents(pipe)
    for handle in handles:
        handle.remove()
    return [1.0, *((new.norm(dim=-1) / old.norm(dim=-1)).mean().item() for old, new in pairwise(residuals))]


def test_calibrating_for_another_number_of_steps_is_an_error():
    pipe = pixart()
    peer = peer_named("MagCache", {"num_inference_steps": STEPS + 2})
    with pytest.raises(PeerError, match=f"measured {STEPS} steps in a run that was to have {STEPS + 2}"):
        calibrated(pipe, peer, lambda: latents(pipe))


def test_peers_that_measure_nothing_are_calibrated_as_they_are():
    peer = peer_named("FirstBlockCache", {})

    def render():
        raise AssertionError("nothing was to run")

    assert calibrated(pixart(), peer, render) is peer


# Pyramid Attention Broadcast


def test_pyramid_attention_broadcast_is_a_static_plan_within_its_range_of_time_steps():
    """An attention computes in every n-th step, counted from the first, and in all outside the range (exclusive)."""
    pipe = pixart()
    names = [f"transformer_blocks.{BLOCKS - 1}.attn{kind}.to_q" for kind in (1, 2)]
    knobs = {"spatial_attention_block_skip_range": 2, "cross_attention_block_skip_range": 3}
    theirs, theirs_ran = by_peer(pipe, latents, "PyramidAttentionBroadcast", knobs, *names)
    times = pipe.scheduler.timesteps.tolist()
    within = [100 < time < 800 for time in times]
    assert 2 < sum(within) < STEPS
    actions = {
        kind: "".join("R" if inside and step % skip else "C" for step, inside in enumerate(within))
        for kind, skip in (("attn1", 2), ("attn2", 3))
    }
    sites = {s.name: actions[s.part] for s in component_sites(pipe.transformer) if s.part in actions}
    ours, ran = by_plan(pipe, latents, plan_of(pipe, sites), *names)
    assert theirs_ran == ran
    agree(theirs, ours)


def test_pyramid_attention_broadcast_hands_one_call_the_attention_of_another():
    """It counts calls, not steps: where a step has two, every second is served what the first one computed. A plan
    keeps the two apart."""
    pipe, leaf = flux(), LAST[flux]
    knobs = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 1001)}
    theirs, ran = by_peer(pipe, guided, "PyramidAttentionBroadcast", knobs, leaf)
    assert ran[leaf] == list(range(0, 2 * STEPS, 2))
    sites = [site.name for site in component_sites(pipe.transformer) if site.part == "attn"]
    ours, ran = by_plan(pipe, guided, plan_of(pipe, dict.fromkeys(sites, "CR" * (STEPS // 2))), leaf)
    assert ran[leaf] == [call for call in range(2 * STEPS) if call // 2 % 2 == 0]
    differ(theirs, ours)


def test_a_hook_of_diffusers_needs_the_contexts_that_not_every_pipeline_gives():
    """PixArt's gives none, so First-Block-Cache alone fails in the first step; `running` names the calls for it."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    pipe = pixart()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(ValueError, match="No cache context is set"):
        latents(pipe)
