"""Peers: listed where they fit, switched on and off, their failures told, and nothing of them left on the pipeline."""

import pytest
import torch
from peer_runs import STEPS, flux, latents, pixart, plan_of
from pipelines import images, unets, videos_wan
from tiny import dit_pipeline, generate

import festina
from festina import FestinaError
from festina.executor.attach import denoisers_of
from festina.peers import PeerError, audit, peer_named, peers_for, running
from festina.sites import component_sites

TAYLOR = {"cache_interval": 3, "cache_identifiers": [r".*blocks\.\d+\.attn\d?"]}
MAG = {"threshold": 0.6, "num_inference_steps": STEPS, "mag_ratios": [1.0] * STEPS}
MASK = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 0,
    "steps_computation_mask": [1, 1, 0, 0, 1, 0, 1, 0, 0, 1],
    "steps_computation_policy": "static",
}
DEEP = {"cache_interval": 2, "cache_branch_id": 0}


def state(pipe):
    """Every attribute of the pipeline, its class and its denoisers' modules, by identity, and the modules' order."""
    modules = [module for _, denoiser in denoisers_of(pipe) for module in denoiser.modules()]
    # Runs write to attributes of a pipeline, also without a peer.
    owners = [{name: id(value) for name, value in vars(owner).items()} for owner in (type(pipe), *modules)]
    return owners, [list(module._modules) for module in modules], set(vars(pipe))


def without_traces(found):
    """Without what runs leave on modules and nothing reads: empty registries of hooks, which diffusers' contexts make,
    and the statistics of cache-dit."""
    owners, order, names = found
    ends = ("_diffusers_hook", "_steps", "_residual_diffs")
    return [{name: value for name, value in each.items() if not name.endswith(ends)} for each in owners], order, names


def sd():
    return unets.PIPELINES["sd2"].build()


def sd_latents(pipe):
    tiny = unets.PIPELINES["sd2"]
    return tiny.output(pipe(**tiny.call(STEPS, 1))).clone()


def dit_pictures(pipe):
    return generate(pipe, steps=STEPS).clone()


# Listing


def test_peers_are_listed_where_they_fit():
    pytest.importorskip("cache_dit")
    pytest.importorskip("DeepCache")
    hooks = {"FirstBlockCache", "TaylorSeerCache", "PyramidAttentionBroadcast", "FasterCache"}
    assert {peer.name for peer in peers_for(pixart(), 20)} == hooks | {"MagCache", "DBCache"}
    assert {peer.name for peer in peers_for(sd(), 20)} == {"DeepCache"}
    # Ratios belong to one denoiser; with two experts there is none to give them to.
    assert {peer.name for peer in peers_for(videos_wan.build_wan22(), 20)} == hooks | {"DBCache"}


def test_only_peers_that_are_installed_are_listed(monkeypatch):
    monkeypatch.setattr("festina.peers.switching.find_spec", lambda name: None if name == "cache_dit" else name)
    assert "DBCache" not in {peer.name for peer in peers_for(pixart(), 20)}
    with pytest.raises(FestinaError, match="DBCache is not installed; pip install cache-dit"):
        peer_named("DBCache", {})


def test_a_listed_peer_names_itself_its_knobs_and_its_version():
    first = next(peer for peer in peers_for(pixart(), 20) if peer.name == "FirstBlockCache")
    assert first.label == "FirstBlockCache threshold=0.05"
    import diffusers

    assert (first.package, first.version) == ("diffusers", diffusers.__version__)
    mag = peer_named("MagCache", {"threshold": 0.1, "mag_ratios": (1.0, 0.9, 0.8, 0.7)})
    assert mag.label == "MagCache threshold=0.1 mag_ratios=(4 values)"
    masked = peer_named("FirstBlockCache", {"steps_computation_mask": (1, 0, 1)})
    assert masked.label.endswith("steps_computation_mask=101")


def test_patterns_of_taylorseer_match_the_component_sites_and_nothing_else():
    for pipe in (pixart(), flux()):
        peers = [peer for peer in peers_for(pipe, 20) if peer.knobs.get("max_order") == 2]
        (everything,) = [peer.knobs for peer in peers]
        with running(pipe, peer_named("TaylorSeerCache", everything)) as state:
            assert set(state.attached) == {f"transformer.{site.name}" for site in component_sites(pipe.transformer)}


def test_no_peer_of_that_name():
    with pytest.raises(FestinaError, match="no peer 'TeaCache'; there are FirstBlockCache"):
        peer_named("TeaCache", {})
    with pytest.raises(FestinaError, match="0 steps"):
        peers_for(pixart(), 0)


# On and off


@pytest.mark.parametrize(
    ("build", "render", "name", "knobs", "left"),
    [
        (pixart, latents, "FirstBlockCache", {"threshold": 0.5}, ()),
        (pixart, latents, "TaylorSeerCache", TAYLOR, ()),
        (pixart, latents, "MagCache", MAG, ()),
        (pixart, latents, "PyramidAttentionBroadcast", {"spatial_attention_block_skip_range": 2}, ()),
        (pixart, latents, "FasterCache", {"tensor_format": "BCHW"}, ()),
        (flux, latents, "FirstBlockCache", {"threshold": 0.7}, ()),
        (flux, latents, "TaylorSeerCache", TAYLOR, ()),
        (flux, latents, "MagCache", MAG, ()),
        (flux, latents, "FasterCache", {"is_guidance_distilled": True}, ()),
        (pixart, latents, "DBCache", MASK, ("order of the modules in transformer",)),
        (
            flux,
            latents,
            "DBCache",
            MASK,
            ("transformer._is_patched", "transformer.forward", "order of the modules in transformer"),
        ),
        (
            dit_pipeline,
            dit_pictures,
            "DBCache",
            MASK,
            (
                "transformer._is_patched",
                "transformer._norm1_emb",
                "transformer.forward",
                "order of the modules in transformer",
            ),
        ),
        (sd, sd_latents, "DeepCache", DEEP, ()),
    ],
)
def test_a_peer_comes_on_and_goes_off(build, render, name, knobs, left):
    """It saves calls, gives the same twice, and afterwards the pipeline gives the bits it gave before. What a peer
    itself does not take off is told, and put back."""
    pytest.importorskip({"DBCache": "cache_dit", "DeepCache": "DeepCache"}.get(name, "diffusers"))
    pipe = build()
    render(pipe)
    before = state(pipe)
    found = audit(pipe, peer_named(name, knobs), lambda: render(pipe))
    assert found.changes
    assert found.repeats
    assert found.restores
    assert found.attached > 0
    assert found.calls < found.calls_plain
    assert found.left_behind == left
    assert found.notes == ((f"left behind: {', '.join(left)}",) if left else ())
    assert without_traces(state(pipe)) == without_traces(before)


def test_a_plan_runs_after_a_peer_as_before_it():
    """cache-dit leaves FLUX's lists in another order, by which a gate would not find its blocks."""
    pytest.importorskip("cache_dit")
    pipe = flux()
    names = [site.name for site in component_sites(pipe.transformer)]
    plan = plan_of(pipe, dict.fromkeys(names, "CRCRCRCRCR"))
    with festina.accelerate(pipe, plan):
        first = latents(pipe)
    with running(pipe, peer_named("DBCache", MASK)):
        latents(pipe)
    assert [site.name for site in component_sites(pipe.transformer)] == names
    with festina.accelerate(pipe, plan):
        assert torch.equal(latents(pipe), first)


def test_what_saves_nothing_is_told():
    pipe = pixart()
    found = audit(pipe, peer_named("FirstBlockCache", {"threshold": 0.001}), lambda: latents(pipe))
    assert found.notes == ("left nothing out", "changed nothing")


def test_a_peer_is_put_on_all_experts_of_a_pipeline():
    pipe, tiny = videos_wan.build_wan22(), videos_wan.PIPELINES["wan22"]
    with running(pipe, peer_named("FirstBlockCache", {"threshold": 0.5})) as state:
        assert {path.partition(".")[0] for path in state.attached} == {"transformer", "transformer_2"}
        assert tiny.output(pipe(**tiny.call(4, 1))).isfinite().all()


def test_two_pipelines_of_one_class_by_cache_dit():
    """It replaces `__call__` of the class. What the second one's going off takes from the class is put back for the
    first."""
    pytest.importorskip("cache_dit")
    one, other = pixart(), pixart()
    plain = latents(one)
    with running(one, peer_named("DBCache", MASK)):
        served = latents(one)
        with running(other, peer_named("DBCache", MASK)) as second:
            assert torch.equal(latents(other), served)
            assert torch.equal(latents(one), served)
        assert "PixArtAlphaPipeline._original_call" in second.left_behind
        assert torch.equal(latents(one), served)
    assert not torch.equal(served, plain)
    assert torch.equal(latents(one), plain)
    assert torch.equal(latents(other), plain)
    assert "_original_call" not in vars(type(one))


# Failing


def test_a_peer_that_cannot_be_switched_on():
    pipe = pixart()
    before, plain = state(pipe), latents(pipe)
    with (
        pytest.raises(
            PeerError, match=r"^MagCache \(diffusers .*\) could not be switched on: ValueError: .*mag_ratios"
        ),
        running(pipe, peer_named("MagCache", {"num_inference_steps": STEPS})),
    ):
        raise AssertionError("it was switched on")
    with (
        pytest.raises(PeerError, match=r"could not be switched on: TypeError: .*'treshold'"),
        running(pipe, peer_named("FirstBlockCache", {"treshold": 0.1})),
    ):
        raise AssertionError("it was switched on")
    assert state(pipe) == before
    assert torch.equal(latents(pipe), plain)


def test_a_peer_that_breaks_during_a_run_is_taken_off():
    """First-Block-Cache wants the text's stream from the last block, and Stable Diffusion 3's returns none."""
    tiny = images.PIPELINES["sd3"]
    pipe = tiny.build()

    def render():
        return tiny.output(pipe(**tiny.call(4, 1))).clone()

    plain, before = render(), without_traces(state(pipe))
    with (
        pytest.raises(PeerError, match=r"^FirstBlockCache \(diffusers .*\) broke during a run: TypeError: ") as failure,
        running(pipe, peer_named("FirstBlockCache", {"threshold": 0.1})),
    ):
        render()
    assert failure.value.peer.knobs == {"threshold": 0.1}
    assert torch.equal(render(), plain)
    assert without_traces(state(pipe)) == before


def test_an_error_of_ones_own_is_not_blamed_on_the_peer():
    pipe = pixart()
    with pytest.raises(FestinaError, match=r"^mine$"), running(pipe, peer_named("FirstBlockCache", {})):
        raise FestinaError("mine")
    with pytest.raises(KeyboardInterrupt), running(pipe, peer_named("FirstBlockCache", {})):
        raise KeyboardInterrupt
    assert "_diffusers_hook" not in vars(pipe.transformer.transformer_blocks[0])


def test_peers_and_plans_do_not_mix():
    pipe = flux()
    plan = plan_of(pipe, {"transformer_blocks.0.attn": "CRCRCRCRCR"})
    first_block = peer_named("FirstBlockCache", {})
    with (
        festina.accelerate(pipe, plan),
        pytest.raises(FestinaError, match="a plan is applied to this pipeline"),
        running(pipe, first_block),
    ):
        pass
    with running(pipe, first_block):
        with pytest.raises(FestinaError, match="runs with diffusers' own cache"):
            festina.apply(pipe, plan)
        with pytest.raises(FestinaError, match="runs with diffusers' own cache"), running(pipe, first_block):
            pass


# Contexts


def test_calls_of_one_step_are_kept_apart_where_the_pipeline_does_not_name_them():
    """Two denoiser calls at one time step have states of their own, and the next run starts anew."""
    pipe = pixart()
    inputs = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    latents(pipe)
    handle.remove()
    ran = []
    leaf = pipe.transformer.transformer_blocks[-1].attn1.to_q
    leaf.register_forward_pre_hook(lambda *_: ran.append(len(outputs)))
    outputs = []
    with running(pipe, peer_named("FirstBlockCache", {"threshold": 9.0})), torch.no_grad():
        for _ in range(2):
            for args, kwargs in inputs[:3]:
                for _ in range(2):
                    outputs.append(pipe.transformer(*args, **kwargs)[0])
    # In the first step of either run both calls compute, and everything after is served.
    assert ran == [0, 1, 6, 7]
    assert all(torch.equal(one, other) for one, other in zip(outputs[:6], outputs[6:], strict=True))
