"""Gates: their decisions and what they serve equal a straightforward loop over the blocks, written out per method."""

from dataclasses import replace

import pytest
import torch
from block_loops import (
    BLOCKS,
    STEPS,
    Loop,
    by_plan,
    call,
    loop_confident,
    loop_dicache,
    loop_first_block,
    loop_teacache,
    samples,
    words,
)
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.executor.gating import relative_change
from festina.gates import Gate

FIRST, REST, WHOLE = (f"transformer_blocks.{run}:residual" for run in ("0", f"1..{BLOCKS - 1}", f"0..{BLOCKS - 1}"))

FIRST_BLOCK = Gate(FIRST, "residual", "computed", 0.6)
TEACACHE = Gate("transformer_blocks.0.attn1", "input", "previous", 0.4, summed=True, curve=(2.0, 0.5, 0.01))
DICACHE = Gate(FIRST, "output", "previous", 0.25, summed=True, stretch=(1.0, 1.5))
DICACHE_MINUS = Gate(FIRST, "output", "previous", 0.02, summed=True, beyond_input=True, stretch=(1.0, 1.5))
CONFIDENT = Gate(FIRST, "output", "forecast", 0.2, order=1)


def gated_plan(gate, site=REST, steps=STEPS, warm_up=1, basis="taylor"):
    rows = "C" * warm_up + "G" * (steps - warm_up)
    return Plan(
        "PixArtTransformer2DModel",
        (site,),
        tuple(Step(1 - index / steps, row) for index, row in enumerate(rows)),
        gate=gate,
        basis=basis,
    )


@pytest.fixture(scope="module")
def denoiser():
    return pixart_transformer(BLOCKS)


METHODS = {
    "first block": (FIRST_BLOCK, REST, lambda model, done: loop_first_block(0.6, {0}, done)),
    "first block, at most 2": (
        replace(FIRST_BLOCK, threshold=0.8, longest=2),
        REST,
        lambda model, done: loop_first_block(0.8, {0}, done, longest=2),
    ),
    "teacache": (TEACACHE, WHOLE, lambda model, done: loop_teacache(model, 0.4, TEACACHE.curve, {0}, done)),
    "dicache": (DICACHE, REST, lambda model, done: loop_dicache(0.25, {0}, done)),
    "dicache, minus": (DICACHE_MINUS, REST, lambda model, done: loop_dicache(0.02, {0}, done, minus=True)),
    "confident": (CONFIDENT, REST, lambda model, done: loop_confident(0.2, 1, {0}, done)),
    "confident, order 2": (replace(CONFIDENT, order=2), REST, lambda model, done: loop_confident(0.2, 2, {0}, done)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_gate_decides_and_serves_as_a_plain_loop(denoiser, name):
    gate, site, make = METHODS[name]
    computed, inputs, text = [], samples(), words()
    wanted = Loop(denoiser).run(make(denoiser, computed), inputs, text)
    found, ran = by_plan(denoiser, gated_plan(gate, site), inputs, text)
    assert ran == computed
    assert 1 < len(computed) < STEPS, "this threshold decides nothing"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_at_threshold_zero_everything_computes_bit_for_bit(denoiser, name):
    gate, site, _ = METHODS[name]
    inputs, text = samples(), words()
    with torch.no_grad():
        plain = [call(denoiser, sample, text, step) for step, sample in enumerate(inputs)]
    found, ran = by_plan(denoiser, gated_plan(replace(gate, threshold=0.0), site), inputs, text)
    assert ran == list(range(STEPS))
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_two_runs_are_alike(denoiser, name):
    gate, site, _ = METHODS[name]
    plan = gated_plan(gate, site)
    with torch.no_grad(), festina.accelerate(denoiser, plan) as run:
        outputs = []
        for _ in range(2):
            run.start(STEPS)
            for step, sample in enumerate(samples()):
                outputs.append(call(denoiser, sample, words(), step))
                run.next_step()
            assert run.store.bytes == 0
    assert all(torch.equal(*pair) for pair in zip(outputs[:STEPS], outputs[STEPS:], strict=True))


def test_warm_up_steps_are_the_tables(denoiser):
    _, ran = by_plan(denoiser, gated_plan(replace(FIRST_BLOCK, threshold=9.0), warm_up=5), samples(), words())
    assert ran == [0, 1, 2, 3, 4]


def test_rows_that_decide_for_themselves_are_as_if_alone(denoiser):
    gate = replace(FIRST_BLOCK, decider="row")
    both = [torch.cat(pair) for pair in zip(samples(seed=0), samples(seed=5), strict=True)]
    text = words(2)
    found, ran = by_plan(denoiser, gated_plan(gate), both, text)
    alone = [
        by_plan(denoiser, gated_plan(gate), samples(seed=seed), text[row : row + 1]) for row, seed in enumerate((0, 5))
    ]
    assert ran == sorted(set(alone[0][1]) | set(alone[1][1]))
    assert alone[0][1] != alone[1][1], "both rows decide alike, so nothing is shown"
    for step in range(STEPS):
        for row in range(2):
            torch.testing.assert_close(found[step][row], alone[row][0][step][0], rtol=1e-4, atol=1e-5)


def test_a_call_decides_for_all_of_its_rows_and_the_second_half_can(denoiser):
    calm, wild = samples(seed=0), [torch.randn(1, 4, 8, 8) * (1 + step) for step in range(STEPS)]
    text = words(2)

    def ran(decider, first, second):
        inputs = [torch.cat(pair) for pair in zip(first, second, strict=True)]
        return by_plan(denoiser, gated_plan(replace(FIRST_BLOCK, decider=decider)), inputs, text)[1]

    alone, other = (by_plan(denoiser, gated_plan(FIRST_BLOCK), each, text[1:])[1] for each in (calm, wild))
    assert ran("second-half", wild, calm) == alone
    assert ran("second-half", calm, wild) == other != alone
    assert ran("call", calm, calm) != list(range(STEPS))


def test_an_odd_batch_has_no_second_half(denoiser):
    plan = gated_plan(replace(FIRST_BLOCK, decider="second-half"))
    with pytest.raises(FestinaError, match="second half of the rows, and a call has 1"):
        by_plan(denoiser, plan, samples(), words())


def test_the_first_call_of_a_step_decides_for_the_others():
    """FLUX with a second call for guidance: both branches compute in the same steps, and nothing is mixed up."""
    call = {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0, "steps": 6}
    pipe = flux_pipeline()
    sites = ("transformer_blocks.1:residual", "single_transformer_blocks.0..1:residual")
    gate = Gate("transformer_blocks.0:residual", "residual", "computed", 0.9, decider="first-call")
    steps = tuple(Step(1 - index / 6, row) for index, row in enumerate(["CC", *["GG"] * 5]))
    plan = Plan("FluxTransformer2DModel", sites, steps, gate=gate)
    ran = []
    leaf = pipe.transformer.single_transformer_blocks[1].attn.to_q
    with festina.accelerate(pipe, plan) as run:
        handle = leaf.register_forward_hook(lambda *_: ran.append((run.clock.step, run.clock.branch)))
        first = generate(pipe, **call)
        handle.remove()
        assert torch.equal(generate(pipe, **call), first)
        report = run.report()
    assert report.calls == 12
    steps_of = {branch: [step for step, name in ran if name == branch] for branch in {name for _, name in ran}}
    assert len(steps_of) == 2
    one, other = steps_of.values()
    assert one == other
    assert len(one) < 6
    assert report.computed[sites[0]] == report.computed[sites[1]] == 2 * len(one)
    assert report.macs < report.macs_uncached


def test_a_gate_on_a_pipeline_is_exact_at_zero_and_leaves_nothing_behind():
    pipe = pixart_pipeline(BLOCKS)
    plain = generate(pipe, steps=STEPS)
    with festina.accelerate(pipe, gated_plan(replace(FIRST_BLOCK, threshold=0.0))):
        assert torch.equal(generate(pipe, steps=STEPS), plain)
    with festina.accelerate(pipe, gated_plan(replace(FIRST_BLOCK, threshold=9.0))) as run:
        assert not torch.equal(generate(pipe, steps=STEPS), plain)
        assert run.report().served[REST] == STEPS - 1
        # The value that is served, and the residual of the first block in the computed step.
        tokens = 2 * 64 * 16 * 4
        assert run.report().peak_bytes == 2 * tokens // 4
    assert torch.equal(generate(pipe, steps=STEPS), plain)


def test_a_plan_file_keeps_its_gate(tmp_path):
    plan = replace(gated_plan(DICACHE_MINUS), basis="hermite")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.key() != replace(plan, gate=DICACHE).key()


def test_a_gate_that_decides_nothing_is_no_part_of_a_plan():
    plan = replace(gated_plan(FIRST_BLOCK), steps=tuple(Step(1 - n / 4, "CRCR"[n]) for n in range(4)))
    assert plan.canonical().gate is None
    assert plan.key() == replace(plan, gate=None).key()


def test_plans_that_cannot_be():
    with pytest.raises(FestinaError, match="some actions are 'G', but there is no gate"):
        gated_plan(None)
    for changed, message in (
        ({"signal": "x"}, "unknown signal 'x'"),
        ({"threshold": -1}, "threshold is a number of at least 0"),
        ({"threshold": float("nan")}, "threshold is a number"),
        ({"summed": True}, "only changes since the previous step add up"),
        ({"beyond_input": True}, "only a probe's output goes beyond its input"),
        ({"probe": "transformer_blocks.0.attn1"}, "a site of the kind 'residual'"),
        ({"order": 10}, "order is a whole number from 0 to 9"),
        ({"stretch": (2.0, 1.0)}, "stretch is a least and a largest"),
        ({"stretch": (1.0, 2.0), "order": 1}, "stretched by a probe's residual, or forecast"),
        ({"decider": "row", "order": 1}, "rows decide for themselves only where the last value is held"),
        ({"longest": -1}, "longest run of serves"),
    ):
        with pytest.raises(FestinaError, match=message):
            replace(FIRST_BLOCK, **changed)


def test_gates_that_do_not_fit_a_denoiser_are_refused(denoiser):
    for gate, site, message in (
        (replace(FIRST_BLOCK, probe="transformer_blocks.7:residual"), REST, "not in this PixArtTransformer2DModel"),
        (replace(TEACACHE, probe="transformer_blocks.0.nothing"), WHOLE, "not in this PixArtTransformer2DModel"),
    ):
        with pytest.raises(FestinaError, match=message):
            festina.apply(denoiser, gated_plan(gate, site))
    served = Plan(
        "PixArtTransformer2DModel",
        (REST, FIRST),
        tuple(Step(1 - n / 3, row) for n, row in enumerate(("CC", "GR", "GC"))),
        gate=FIRST_BLOCK,
    )
    with pytest.raises(FestinaError, match="is served in steps in which it decides"):
        festina.apply(denoiser, served)
    inner = Plan(
        "PixArtTransformer2DModel",
        (REST, "transformer_blocks.2.ff"),
        tuple(Step(1 - n / 3, row) for n, row in enumerate(("CC", "GR", "GC"))),
        gate=replace(FIRST_BLOCK, decider="row"),
    )
    with pytest.raises(FestinaError, match="want everything within the gated sites to compute"):
        festina.apply(denoiser, inner)
    assert not festina.sites.find_denoiser(denoiser).__dict__.get("_festina")


def test_a_probe_that_does_not_run_before_is_an_error(denoiser):
    plan = gated_plan(replace(FIRST_BLOCK, probe="transformer_blocks.3:residual"), "transformer_blocks.0..2:residual")
    with pytest.raises(FestinaError, match="did not run right before the gated blocks"):
        by_plan(denoiser, plan, samples(), words())


def test_change():
    old, new = torch.tensor([[1.0, -1.0], [2.0, 2.0]]), torch.tensor([[1.5, -1.5], [2.0, 2.0]])
    assert relative_change(old, new, rows=True).tolist() == [0.5, 0.0]
    assert relative_change(old, new, rows=False).item() == pytest.approx(0.25 / 1.5)
    assert relative_change(torch.zeros(2), torch.zeros(2), rows=False) == 0
    assert relative_change(torch.zeros(2), torch.ones(2), rows=False) == float("inf")


@pytest.mark.parametrize("branches", ["conditional", "merged"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_what_adds_up_for_each_row_goes_on_with_the_rows_that_do(branches, pictures):
    """In a guided call whose rows decide for themselves, half of them run from the middle on."""
    pipe = pixart_pipeline(BLOCKS)
    gate = Gate(FIRST, "residual", "previous", 9.0, summed=True, decider="row")
    plan = gated_plan(gate, steps=8)
    steps = tuple(replace(step, branches="all" if place < 4 else branches) for place, step in enumerate(plan.steps))
    told = []
    with festina.accelerate(pipe, replace(plan, steps=steps)) as run:
        judge = run.gate._judge

        def noted(signal, *rest):
            found = judge(signal, *rest)
            told.append((len(signal), torch.as_tensor(run.gate._tallies[run.clock.branch].changes).reshape(-1)))
            return found

        run.gate._judge = noted
        generate(pipe, [f"a red square {number}" for number in range(pictures)], steps=8)
    assert [rows for rows, _ in told] == [2 * pictures] * 4 + [pictures] * 4
    before, after = told[3][1], told[4][1]
    assert len(after) == pictures
    kept = before[pictures:] if branches == "conditional" else (before[:pictures] + before[pictures:]) / 2
    # What had added up before is still in it, unless the row computed.
    assert ((after >= kept - 1e-6) | (after == 0)).all()
    assert (kept > 0).any(), "nothing had added up, so nothing is shown"
