"""Every denoiser class of diffusers: exactly the scheduled sites run; prices, bytes held, restoration."""

import functools
import importlib
import inspect
import pkgutil
from collections import Counter

import diffusers
import numpy as np
import pytest
import torch
from denoisers.all_classes import CLASSES, LEFT_OUT
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import festina
from festina import Plan
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.sites import block_sites, component_sites, region_sites

STEPS = 4

NOT_COUNTED_BY_TORCH = {
    "BriaFibo2Transformer2DModel": "torch's counter fails in its own tracking of modules",
    "AnyFlowFARTransformer3DModel": "torch's counter cannot run flex attention",
    "Kandinsky6SRTransformer3DModel": "torch's counter cannot run flex attention",
    "WanAnimate2Transformer3DModel": "torch's counter cannot run flex attention",
}


@functools.cache
def built(name):
    torch.manual_seed(0)
    return CLASSES[name].build().eval()


def inputs(name, step=0):
    """Arguments of the call in a step: the denoised sample changes from step to step, the rest stays."""
    torch.manual_seed(1)
    given = CLASSES[name].inputs()
    for parameter in inspect.signature(type(built(name)).forward).parameters:
        leaves = [leaf for leaf in tree_leaves(given.get(parameter)) if isinstance(leaf, Tensor)]
        if leaves:
            # What comes next says what to draw; other conditioning in each step would be another branch.
            if all(leaf.is_floating_point() for leaf in leaves):
                given[parameter] = tree_map_only(Tensor, lambda leaf: leaf * (1 - 0.1 * step), given[parameter])
            break
    return given


def tensors(output):
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@torch.no_grad()
def sample(name, run=None, constant=False, ended=lambda: None):
    """The outputs of STEPS calls."""
    outputs = []
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        outputs.append(tensors(built(name)(**inputs(name, 0 if constant else step))))
        ended()
        if run is not None:
            run.next_step()
    return outputs


def equal(one, other):
    pairs = [pair for mine, theirs in zip(one, other, strict=True) for pair in zip(mine, theirs, strict=True)]
    return bool(pairs) and all(torch.equal(mine, theirs) for mine, theirs in pairs)


def random_plan(name, sites, seed=0):
    mask = np.random.default_rng(seed).random((STEPS, len(sites))) < 0.5
    return Plan.from_mask(type(built(name)).__name__, [site.name for site in sites], mask).canonical()


def replaying(name, plan):
    """The same schedule by another route: hooks that let everything compute, then swap the remembered output in."""
    memory, state, handles = {}, {"step": 0, "visits": Counter()}, []

    def hook(path, column):
        def swap(module, args, output):
            visit = path, state["visits"][path]
            state["visits"][path] += 1
            if plan.steps[state["step"]].actions[column] == "C":
                memory[visit] = output
            return memory[visit]

        return swap

    for column, path in enumerate(plan.sites):
        handles.append(built(name).get_submodule(path).register_forward_hook(hook(path, column)))

    def ended():
        state["step"] += 1
        state["visits"].clear()

    try:
        return sample(name, ended=ended)
    finally:
        for handle in handles:
            handle.remove()


def watching(name, run, sites):
    """Count, per component and step, the runs of the first layer inside it; a component that is a single layer is
    left to the count of its multiplications."""
    ran, handles = Counter(), []
    for site in sites:
        module = built(name).get_submodule(site.path)
        leaves = [
            inner for inner in module.modules() if isinstance(inner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ]
        if leaves and leaves[0] is not module:
            handles.append(
                leaves[0].register_forward_hook(lambda *_, site=site.name: ran.update([(site, run.clock.step)]))
            )
    return ran, handles


def snapshot(model):
    """Names of all attributes of all modules, and the identity of what can be called; some models cache tensors."""
    return [
        {name: id(value) if callable(value) else None for name, value in vars(module).items()}
        for module in model.modules()
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_a_random_schedule_of_components(name):
    model, sites = built(name), component_sites(built(name))
    untouched = sample(name)
    before = snapshot(model)
    names = [site.name for site in sites]
    assert len(set(names)) == len(names) > 0
    with festina.accelerate(model, Plan.computing_all(type(model).__name__, names, STEPS)) as run:
        assert equal(sample(name, run), untouched)
    plan = random_plan(name, sites)
    wanted = replaying(name, plan)
    with festina.accelerate(model, plan) as run:
        ran, handles = watching(name, run, sites)
        served = sample(name, run)
        for handle in handles:
            handle.remove()
        report = run.report()
        assert len(run.store) == 0
    assert snapshot(model) == before
    assert equal(served, wanted)
    assert equal(sample(name), untouched)
    mask = plan.mask()
    assert all(mask[step, names.index(site)] for site, step in ran), "a site ran in a step that reuses it"
    traced = trace(model, Call((), inputs(name)))
    table = mac_table(model, traced)
    visits = {site.name: len(traced.returned[site.path]) for site in sites}
    assert dict(report.computed) == {site: int(mask[:, n].sum()) * visits[site] for n, site in enumerate(names)}
    assert report.macs == plan_macs(plan, table).total
    assert report.macs_uncached == STEPS * table.full.total
    itemsize = 4
    assert report.peak_bytes == held_bytes(plan, model, traced, itemsize)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_COUNTED_BY_TORCH])
def test_prices_are_those_of_torchs_counter(name):
    model, sites = built(name), component_sites(built(name))
    table = mac_table(model, trace(model, Call((), inputs(name))))

    def counted(run=None):
        # The kernels for CPUs are unknown to torch's counter; the plain products are not.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            sample(name, run)
        return counter.get_total_flops() // 2

    assert counted() == STEPS * table.full.total
    plan = random_plan(name, sites, seed=1)
    with festina.accelerate(model, plan) as run:
        assert counted(run) == plan_macs(plan, table).total < STEPS * table.full.total


@pytest.mark.parametrize("name", [name for name in CLASSES if block_sites(built(name))])
def test_a_random_schedule_of_blocks(name):
    """With one and the same input in every step a served residual gives what computing gives, but for rounding."""
    model, sites = built(name), block_sites(built(name))
    plan = random_plan(name, sites)
    untouched = sample(name, constant=True)
    with festina.accelerate(model, plan) as run:
        served = sample(name, run, constant=True)
        report = run.report()
    for mine, theirs in zip(served, untouched, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one - other).abs().max() <= 1e-3 * (1 + other.abs().max())
    traced = trace(model, Call((), inputs(name)))
    mask, visits = plan.mask(), {site.name: len(traced.returned[site.path]) for site in sites}
    assert dict(report.computed) == {
        site.name: int(mask[:, n].sum()) * visits[site.name] for n, site in enumerate(sites)
    }
    assert report.macs == plan_macs(plan, mac_table(model, traced)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


@pytest.mark.parametrize("name", [name for name in CLASSES if region_sites(built(name))])
def test_a_random_schedule_of_regions(name):
    """With one and the same input in every step served regions give the very bits that computing gives."""
    model, sites = built(name), region_sites(built(name))
    plan = random_plan(name, sites)
    untouched = sample(name, constant=True)
    with festina.accelerate(model, plan) as run:
        assert equal(sample(name, run, constant=True), untouched)
        report = run.report()
    traced = trace(model, Call((), inputs(name)))
    assert dict(report.computed) == {site.name: int(plan.mask()[:, n].sum()) for n, site in enumerate(sites)}
    assert report.macs == plan_macs(plan, mac_table(model, traced)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


def test_no_class_of_diffusers_is_missing():
    found = set()
    for package in ("transformers", "unets"):
        home = importlib.import_module(f"diffusers.models.{package}")
        for info in pkgutil.iter_modules(home.__path__):
            module = importlib.import_module(f"{home.__name__}.{info.name}")
            found |= {
                name
                for name, value in vars(module).items()
                if inspect.isclass(value)
                and issubclass(value, diffusers.ModelMixin)
                and value.__module__ == module.__name__
            }
    covered = {name.partition("-")[0] for name in CLASSES}
    assert found - covered == set(LEFT_OUT), "a class without a fixture and without a reason"
    assert not covered & set(LEFT_OUT)
    assert all(LEFT_OUT.values())
