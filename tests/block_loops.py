"""Shared by the tests of gates: runs of a tiny transformer by a plan, and by a plain loop over its blocks.

A `loop_...` is the rule of a published method, written out: what leaves the last block in a step, given the blocks and
what enters the first one. Each notes in `computed` in which steps it ran all blocks; in the `forced` ones it has to.
"""

import torch

import festina
from festina.forecasts import weights

BLOCKS, STEPS = 4, 12
SIZE = {"resolution": None, "aspect_ratio": None}


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
        self.denoiser = denoiser

    def run(self, rule, inputs, text):
        first, last = self.denoiser.transformer_blocks[0], self.denoiser.transformer_blocks[-1]
        outputs, given, now = [], {}, [0]

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
                given.update(h0=args[0], args=args, kwargs=kwargs)

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


def loop_first_block(threshold, forced, computed, first=1, last=0, longest=0):
    """First-Block-Cache, and DBCache without forecasts."""
    memory = {}

    def rule(blocks, h0, step):
        head, middle, tail = blocks[:first], blocks[first : len(blocks) - last], blocks[len(blocks) - last :]
        h1 = through(head, h0)
        r = h1 - h0
        may = step not in forced and (not longest or memory["served"] < longest)
        if may and distance(memory["r"], r) < threshold:
            memory["served"] += 1
            return through(tail, h1 + memory["R"])
        h2 = through(middle, h1)
        memory.update(r=r, R=h2 - h1, served=0)
        computed.append(step)
        return through(tail, h2)

    return rule


def loop_teacache(denoiser, threshold, curve, forced, computed):
    memory = {}

    def rule(blocks, h0, step):
        seen = []
        handle = denoiser.transformer_blocks[0].attn1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        out = through(blocks, h0)
        handle.remove()
        m = seen[0]
        if step not in forced:
            x = distance(memory["m"], m)
            memory["a"] += max(0.0, sum(c * x**p for p, c in enumerate(reversed(curve))))
        memory["m"] = m
        if step not in forced and memory["a"] < threshold:
            return h0 + memory["R"]
        memory.update(R=out - h0, a=0.0)
        computed.append(step)
        return out

    return rule


def loop_dicache(threshold, forced, computed, stretch=(1, 1.5), depth=1, minus=False):
    memory, window = {"a": 0.0}, []

    def rule(blocks, h0, step):
        p = through(blocks[:depth], h0)
        if step not in forced:
            change = distance(memory["p"], p)
            memory["a"] += abs(change - distance(memory["h0"], h0)) if minus else change
        serve = step not in forced and memory["a"] < threshold
        memory.update(p=p, h0=h0)
        if serve:
            # The paper serves the stack's prolonged residual; that of the probe, which is known, misses by this.
            (new, q1), (old, q2) = window[0], window[min(1, len(window) - 1)]
            factor = 1.0
            if len(window) > 1:
                factor = ((p - h0 - q2).abs().mean() / (q1 - q2).abs().mean()).clamp(*stretch)
            miss = p - h0 - (q2 + factor * (q1 - q2))
            return h0 + old + factor * (new - old) + miss
        out = through(blocks[depth:], p)
        window.insert(0, (out - h0, p - h0))
        memory["a"] = 0.0
        computed.append(step)
        return out

    return rule


def loop_confident(threshold, order, forced, computed):
    nodes = []

    def forecast(place, step):
        used = nodes[: order + 1]
        shares = weights("taylor", tuple(node[0] for node in used), step)
        return sum(share * node[place] for share, node in zip(shares, used, strict=True))

    def rule(blocks, h0, step):
        h1 = blocks[0](h0)
        if step not in forced and distance(h1, forecast(1, step)) < threshold:
            # The paper serves the forecast of the last hidden state; the forecast of the first block misses by this.
            return forecast(2, step) + (h1 - forecast(1, step))
        out = through(blocks[1:], h1)
        nodes.insert(0, (step, h1, out))
        computed.append(step)
        return out

    return rule
