"""Computing a site for some of its tokens: multiplications, bytes held and seconds predicted."""

from dataclasses import replace

import pytest
import torch
from partial import AGEING, IMPORTANCE, RANDOM, SIZE, TWO_CALLS, drifting, partial_plan
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline, pixart_transformer
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import festina
from festina.cost import held_bytes, mac_table, plan_macs, trace
from festina.latency import Group, LatencyModel
from festina.sites import component_sites, find_denoiser
from festina.tokens import kept_after


class Counting(TorchFunctionMode):
    """Multiplications of linear layers and of attentions, as torch is asked for them."""

    def __init__(self):
        super().__init__()
        self.linear = self.attention = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.linear:
            self.linear += args[0].numel() * len(args[1])
        elif func is functional.scaled_dot_product_attention:
            query, key = (args or (kwargs["query"], kwargs["key"]))[:2]
            self.attention += 2 * query.numel() * key.shape[-2]
        elif func is torch.Tensor.matmul:
            self.attention += args[0].numel() * args[1].shape[-1]
        return func(*args, **kwargs)

    def within(self, module):
        """Count what is done in the module, by hooks; returns them."""
        return [
            module.register_forward_pre_hook(lambda module, args: self.__enter__() and None),
            module.register_forward_hook(lambda module, args, output: self.__exit__(None, None, None)),
        ]


@pytest.mark.parametrize("tokens", [RANDOM, IMPORTANCE, replace(AGEING, bonus=0.5)], ids=["random", "map", "all"])
@pytest.mark.parametrize("make", [pixart_pipeline, dit_pipeline])
def test_what_a_run_costs_is_what_was_priced(make, tokens):
    """Multiplications counted beside the run, and bytes held, are those of the plan and of the report."""
    pipe, letters = make(), "CTTCTR"
    plan, denoiser = partial_plan(pipe, letters, tokens, 0.3), find_denoiser(pipe)
    found = {}
    for name, each in (("plan", plan), ("uncached", partial_plan(pipe, "CCCCCC", None))):
        with festina.accelerate(pipe, each) as run:
            found[name] = Counting()
            handles = found[name].within(denoiser)
            first = generate(pipe, steps=6)
            for handle in handles:
                handle.remove()
            assert torch.equal(generate(pipe, steps=6), first)
            report = run.report()
            call = next(iter(run.calls.values())).call
        traced = trace(denoiser, call)
        priced = plan_macs(each, mac_table(denoiser, traced))
        assert found[name].attention == priced.attention
        assert report.macs == priced.total
        assert report.peak_bytes == held_bytes(each, denoiser, traced, 4)
        found[name] = (found[name].linear, priced.linear)
    (counted_plan, priced_plan), (counted_all, priced_all) = found["plan"], found["uncached"]
    assert counted_all - counted_plan == priced_all - priced_plan > 0


def test_two_calls_per_step_choose_for_themselves():
    pipe = flux_pipeline()
    plan = partial_plan(pipe, "CTTCTR", AGEING, 0.4)
    with festina.accelerate(pipe, plan) as run:
        first = generate(pipe, steps=6, **TWO_CALLS)
        assert torch.equal(generate(pipe, steps=6, **TWO_CALLS), first)
        report = run.report()
        calls = [record.call for record in run.calls.values()]
    denoiser = find_denoiser(pipe)
    traced = trace(denoiser, calls[0])
    assert report.macs == 2 * plan_macs(plan, mac_table(denoiser, traced)).total
    assert report.peak_bytes == held_bytes(plan, denoiser, traced, 4, branches=2)
    # 16 tokens of the picture and 20 of the text; single blocks have all of them.
    tokens = {name.rpartition(".")[2]: count for name, count in report.tokens.items()}
    assert tokens == {"ff": 3 * 2 * 6, "ff_context": 3 * 2 * 8, "proj_mlp": 3 * 2 * 14, "proj_out": 3 * 2 * 14}


@pytest.mark.parametrize("word", ["conditional", "merged"])
@pytest.mark.parametrize("call", [{}, TWO_CALLS], ids=["batched", "apart"])
def test_scores_go_on_with_the_branch_that_runs(word, call):
    pipe = flux_pipeline() if call else pixart_pipeline()
    plan = partial_plan(pipe, "CTTTTR", AGEING, branches=["all"] * 3 + [word] * 3)
    with festina.accelerate(pipe, plan) as run:
        first = generate(pipe, steps=6, **call)
        assert torch.equal(generate(pipe, steps=6, **call), first)
        report, record = run.report(), next(record for record in run.calls.values() if record.asked)
    traced = trace(find_denoiser(pipe), record.call)
    assert report.peak_bytes == held_bytes(plan, find_denoiser(pipe), traced, 4, branches=2 if call else 1)


def test_maps_are_kept_no_longer_than_they_are_read():
    """Step 0 is read in step 1, step 2 in 3 and 4; in step 5 everything computes and nothing reads."""
    denoiser, seen = pixart_transformer(), []
    inputs, text = drifting(6)
    plan = partial_plan(denoiser, "CTCTTC", AGEING)
    with torch.no_grad(), festina.accelerate(denoiser, plan) as run:
        run.start(6)
        for step, sample in enumerate(inputs):
            denoiser(sample, text, timestep=torch.full((2,), 900 - step), added_cond_kwargs=SIZE)
            run.next_step()
            seen.append(
                {
                    kind: sum(site.startswith(f"tokens:{kind}") for _, site in run.store._values)
                    for kind in ("attended", "age")
                }
            )
        maps = [column.computed.total() for column in run.tokens.maps]
    assert [each["attended"] for each in seen] == [3, 0, 3, 3, 0, 0]
    assert [each["age"] for each in seen] == [0, 0, 0, 6, 0, 0]
    assert maps == [2, 2, 2]
    assert kept_after([False, True, False, True, True, False], [True, False, True, False, False, True]) == (
        True,
        False,
        True,
        True,
        False,
        False,
    )


def test_the_latency_model_counts_a_share_of_a_site():
    denoiser = pixart_transformer()
    sites = component_sites(denoiser)
    groups = [
        Group(name, price, tuple(site.name for site in sites if site.group == name))
        for name, price in zip(dict.fromkeys(site.group for site in sites), (1.0, 2.0, 4.0), strict=True)
    ]
    plan = partial_plan(denoiser, "CTR", RANDOM, 0.25)
    # Three blocks; attn1 computes once, attn2 and ff once and a quarter.
    model = LatencyModel(0.0, tuple(groups))
    assert model.seconds(plan) == pytest.approx(3 * (1.0 + 1.25 * 2.0 + 1.25 * 4.0))
    # A plan that names these sites only: all others compute in every step.
    kept = [index for index, site in enumerate(plan.sites) if site.endswith("ff")]
    steps = tuple(
        replace(step, actions="".join(step.actions[n] for n in kept), shares=step.shares and (0.25,) * 3)
        for step in plan.steps
    )
    alone = replace(plan, sites=tuple(plan.sites[n] for n in kept), steps=steps)
    assert model.seconds(alone) == pytest.approx(3 * (3 * 1.0 + 3 * 2.0 + 1.25 * 4.0))
