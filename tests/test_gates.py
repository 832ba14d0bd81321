"""Gates: their decisions and what they serve equal a straightforward loop over the blocks, written out per method."""

from dataclasses import replace

import pytest
import torch
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.executor.gating import relative_change
from festina.forecasts import weights
from festina.gates import Gate

BLOCKS, STEPS = 4, 12
FIRST, REST, WHOLE = (f"transformer_blocks.{run}:residual" for run in ("0", f"1..{BLOCKS - 1}", f"0..{BLOCKS - 1}"))
SIZE = {"resolution": None, "aspect_ratio": None}

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


def samples(rows=1, seed=0):
    """Inputs that drift: an uneven walk, so that a gate computes now and then."""
    torch.manual_seed(seed)
    start, drift = torch.randn(rows, 4, 8, 8), torch.randn(rows, 4, 8, 8)
    return [start + drift * (0.06 * step + (0.35 if step > 6 else 0)) for step in range(STEPS)]


def words(rows=1):
    return torch.randn(rows, 5, 16, generator=torch.Generator().manual_seed(9))


def call(denoiser, sample, text, step):
    times = torch.full((len(sample),), 900 - 60 * step)
    return denoiser(sample, text, timestep=times, added_cond_kwargs=SIZE, return_dict=False)[0]


def by_plan(denoiser, plan, inputs, text):
    """Outputs by a plan, and in which steps the last block ran."""
    outputs, ran, step_now = [], [], [0]
    leaf = denoiser.transformer_blocks[-1].attn1.to_q
    handle = leaf.register_forward_hook(lambda *_: ran.append(step_now[0]))
    try:
        with torch.no_grad(), festina.accelerate(denoiser, plan) as run:
            run.start(len(inputs))
            for step, sample in enumerate(inputs):
                step_now[0] = step
                outputs.append(call(denoiser, sample, text, step))
                run.next_step()
    finally:
        handle.remove()
    return outputs, sorted(set(ran))


class Loop:
    """Steps of a denoiser whose blocks are run by hand: `rule(blocks, h0, step)` returns what leaves the last one."""

    def __init__(self, denoiser):
        self.denoiser, self.computed = denoiser, []

    def run(self, rule, inputs, text):
        first, last = self.denoiser.transformer_blocks[0], self.denoiser.transformer_blocks[-1]
        outputs, given, now = [], {}, [0]

        def keep(module, args, kwargs):
            given["args"], given["kwargs"] = args, kwargs

        def put(module, args, output):
            if given.get("busy"):
                return None
            given["busy"] = True
            blocks = [
                lambda h, b=b: b(h, *given["args"][1:], **given["kwargs"]) for b in self.denoiser.transformer_blocks
            ]
            answer = rule(blocks, given["h0"], now[0])
            given["busy"] = False
            return answer

        def enter(module, args, kwargs):
            if not given.get("busy"):
                given["h0"] = args[0]
                keep(module, args, kwargs)

        handles = [
            first.register_forward_pre_hook(enter, with_kwargs=True),
            last.register_forward_hook(put),
        ]
        try:
            with torch.no_grad():
                for step, sample in enumerate(inputs):
                    now[0] = step
                    outputs.append(call(self.denoiser, sample, text, step))
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def distance(old, new):
    return ((new - old).abs().mean() / old.abs().mean()).item()


def through(blocks, h):
    for block in blocks:
        h = block(h)
    return h


def first_block_cache(threshold, longest, computed):
    memory = {}

    def rule(blocks, h0, step):
        h1 = blocks[0](h0)
        r = h1 - h0
        if memory and distance(memory["r"], r) < threshold and (not longest or memory["run"] < longest):
            memory["run"] += 1
            return h1 + memory["R"]
        out = through(blocks[1:], h1)
        memory.update(r=r, R=out - h1, run=0)
        computed.append(step)
        return out

    return rule


def teacache(denoiser, threshold, curve, computed):
    memory = {}

    def rule(blocks, h0, step):
        seen = []
        handle = denoiser.transformer_blocks[0].attn1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        out = through(blocks, h0)
        handle.remove()
        m = seen[0]
        if memory:
            x = distance(memory["m"], m)
            memory["a"] += max(0.0, sum(c * x**p for p, c in enumerate(reversed(curve))))
        serve = bool(memory) and memory["a"] < threshold
        memory["m"] = m
        if serve:
            return h0 + memory["R"]
        memory.update(R=out - h0, a=0.0)
        computed.append(step)
        return out

    return rule


def dicache(threshold, minus, computed):
    memory, window = {"a": 0.0}, []

    def rule(blocks, h0, step):
        p = blocks[0](h0)
        if "p" in memory:
            change = distance(memory["p"], p)
            memory["a"] += abs(change - distance(memory["h0"], h0)) if minus else change
        serve = bool(window) and memory["a"] < threshold
        memory.update(p=p, h0=h0)
        if serve:
            q = p - h0
            if len(window) < 2:
                return p + window[0][0]
            (new, q1), (old, q2) = window[:2]
            factor = ((q - q2).abs().mean() / (q1 - q2).abs().mean()).clamp(1, 1.5)
            return p + old + factor * (new - old)
        out = through(blocks[1:], p)
        window.insert(0, (out - p, p - h0))
        memory["a"] = 0.0
        computed.append(step)
        return out

    return rule


def confident_taylor(threshold, order, computed):
    nodes = []

    def forecast(place, step):
        used = nodes[: order + 1]
        shares = weights("taylor", tuple(node[0] for node in used), step)
        return sum(w * node[place] for w, node in zip(shares, used, strict=True))

    def rule(blocks, h0, step):
        h1 = blocks[0](h0)
        if nodes and ((forecast(1, step) - h1).abs().mean() / h1.abs().mean()).item() < threshold:
            return h1 + forecast(2, step)
        out = through(blocks[1:], h1)
        nodes.insert(0, (step, h1, out - h1))
        computed.append(step)
        return out

    return rule


METHODS = {
    "first block": (FIRST_BLOCK, REST, lambda model, done: first_block_cache(0.6, 0, done)),
    "first block, at most 2": (
        replace(FIRST_BLOCK, threshold=0.8, longest=2),
        REST,
        lambda model, done: first_block_cache(0.8, 2, done),
    ),
    "teacache": (TEACACHE, WHOLE, lambda model, done: teacache(model, 0.4, TEACACHE.curve, done)),
    "dicache": (DICACHE, REST, lambda model, done: dicache(0.25, False, done)),
    "dicache, minus": (DICACHE_MINUS, REST, lambda model, done: dicache(0.02, True, done)),
    "confident": (CONFIDENT, REST, lambda model, done: confident_taylor(0.2, 1, done)),
    "confident, order 2": (replace(CONFIDENT, order=2), REST, lambda model, done: confident_taylor(0.2, 2, done)),
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
