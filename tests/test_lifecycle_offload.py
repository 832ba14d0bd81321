"""Offloading and LoRA come and go before, during and after a plan; each order serves the same and gives all back."""

import pytest
import torch
from lifecycle import random_plan, reference, snapshot
from tiny import flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError
from festina.sites import block_sites, component_sites

accelerate_hooks = pytest.importorskip("accelerate.hooks")
hooks = pytest.importorskip("diffusers.hooks")


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


class Loading(accelerate_hooks.ModelHook):
    """Weights that are there only while their module runs: what accelerate's own hook does between two devices.

    Its own cannot do it on a single device (accelerate 1.15), so that this one has the weights in a drawer.
    """

    def init_hook(self, module):
        self.drawer = {name: weight.data.clone() for name, weight in module.named_parameters(recurse=False)}
        self.loads = 0
        self._fill(module, None)
        return module

    def pre_forward(self, module, *args, **kwargs):
        self.loads += 1
        self._fill(module, self.drawer)
        return args, kwargs

    def post_forward(self, module, output):
        self._fill(module, None)
        return output

    def detach_hook(self, module):
        self._fill(module, self.drawer)
        return module

    @staticmethod
    @torch.no_grad()
    def _fill(module, weights):
        for name, weight in module.named_parameters(recurse=False):
            weight.data.fill_(float("nan")) if weights is None else weight.data.copy_(weights[name])


def sequential_offload(pipe):
    for module in pipe.transformer.modules():
        if list(module.parameters(recurse=False)):
            accelerate_hooks.add_hook_to_module(module, Loading(), append=True)


def sequential_removal(pipe):
    accelerate_hooks.remove_hook_from_module(pipe.transformer, recurse=True)


def group_offload(kind, **more):
    def enable(pipe):
        cpu = torch.device("cpu")
        hooks.apply_group_offloading(pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type=kind, **more)

    return enable


def group_removal(pipe):
    for module in pipe.transformer.modules():
        if hasattr(module, "_diffusers_hook"):
            for name in list(module._diffusers_hook.hooks):
                module._diffusers_hook.remove_hook(name, recurse=False)


class Scaling(hooks.ModelHook):
    """A hook that does the call itself, as those of diffusers' caches do."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def own_hooks(pipe):
    for block in pipe.transformer.transformer_blocks:
        for module in (block, block.attn1, block.ff):
            hooks.HookRegistry.check_if_exists_or_initialize(module).register_hook(Scaling(), "scaling")
            hooks.HookRegistry.check_if_exists_or_initialize(module).register_hook(hooks.ModelHook(), "plain")


OFFLOADS = {
    "model": (model_offload, lambda pipe: pipe.remove_all_hooks()),
    "sequential": (sequential_offload, sequential_removal),
    "group-block": (group_offload("block_level", num_blocks_per_group=1), group_removal),
    "group-leaf": (group_offload("leaf_level"), group_removal),
    "hooks": (own_hooks, group_removal),
}


def plans(pipe, seed=1):
    yield random_plan(pipe, seed)
    yield random_plan(pipe, seed, sites=block_sites(pipe.transformer))


def attributes(pipe):
    return [set(owner) for owner in snapshot(pipe)]


@pytest.mark.parametrize("kind", OFFLOADS)
@pytest.mark.parametrize("blocks", [False, True], ids=["components", "blocks"])
def test_offloading_in_every_order(kind, blocks):
    enable, disable = OFFLOADS[kind]
    pipe = pixart_pipeline()
    plain = generate(pipe)
    plan = list(plans(pipe))[blocks]
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe)
    assert not torch.equal(plain, wanted)

    def served():
        for _ in range(2):
            assert torch.equal(generate(pipe), wanted)

    def untouched():
        assert torch.equal(generate(pipe), plain)
        assert not [owner for owner in snapshot(pipe) if "_festina" in owner]

    orders = [
        [enable, apply, served, remove, untouched, disable],
        [enable, apply, served, disable, served, remove],
        [apply, served, enable, served, remove, untouched, disable],
        [apply, enable, served, disable, served, remove],
        [enable, apply, disable, enable, served, remove, disable],
        [apply, enable, served, disable, enable, served, remove, disable],
    ]
    for order in orders:
        for act in order:
            if act in (served, untouched):
                act()
            else:
                act(pipe, plan) if act is apply else act(pipe)
        untouched()
        for module in pipe.transformer.modules():
            left = vars(module).get("forward")
            # accelerate leaves a bound method behind when it goes; nothing else may be there.
            assert left is None or (left.__self__ is module and left.__func__ is type(module).forward)


def apply(pipe, plan):
    festina.apply(pipe, plan)


def remove(pipe):
    festina.remove(pipe)


@pytest.mark.parametrize("kind", OFFLOADS)
def test_removal_gives_back_the_same_objects_within_an_offloader(kind):
    pipe = pixart_pipeline()
    OFFLOADS[kind][0](pipe)
    generate(pipe)
    before = snapshot(pipe)
    with festina.accelerate(pipe, random_plan(pipe)):
        assert snapshot(pipe) != before
    assert snapshot(pipe) == before


def test_an_offloader_put_around_it_holds_nothing_of_it_afterwards():
    pipe = pixart_pipeline()
    festina.apply(pipe, random_plan(pipe, density=0.2))
    model_offload(pipe)
    sequential = pipe.transformer.transformer_blocks[0].attn1
    accelerate_hooks.add_hook_to_module(sequential, accelerate_hooks.ModelHook())
    own_hooks(pipe)
    festina.remove(pipe)
    for module in pipe.transformer.modules():
        for value in vars(module).values():
            assert "festina" not in type(value).__module__
            assert "festina" not in type(getattr(value, "__wrapped__", None)).__module__


def test_the_layers_of_a_served_site_are_not_loaded():
    pipe = pixart_pipeline()
    sequential_offload(pipe)
    plan = random_plan(pipe, 3)
    with festina.accelerate(pipe, plan):
        generate(pipe)
    for site in plan.sites:
        layers = [module for module in pipe.transformer.get_submodule(site).modules() if hasattr(module, "_hf_hook")]
        assert {layer._hf_hook.loads for layer in layers} == {len(plan.computed_steps(site))}


# -- LoRA ---------------------------------------------------------------------------------------------------------

LAYERS = ["to_q", "proj_mlp", "proj_out", "ff.net.2"]


def load_lora(pipe):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False))


def unload_lora(pipe):
    pipe.transformer.unload_lora()


def test_lora_in_every_order():
    pytest.importorskip("peft")
    pipe = flux_pipeline()
    plan = random_plan(pipe, 2)
    assert any(site.endswith("proj_mlp") for site in plan.sites)
    plain = generate(pipe)
    with reference(pipe, plan):
        wanted = {False: generate(pipe)}
    load_lora(pipe)
    plain_lora = generate(pipe)
    with reference(pipe, plan):
        wanted[True] = generate(pipe)
    unload_lora(pipe)
    assert torch.equal(generate(pipe), plain)
    assert not torch.equal(wanted[True], wanted[False])

    def without(pipe):
        assert torch.equal(generate(pipe), wanted[False])

    def within(pipe):
        assert torch.equal(generate(pipe), wanted[True])

    def attach(pipe):
        festina.apply(pipe, plan)

    orders = [
        [load_lora, attach, within, remove, unload_lora],
        [load_lora, attach, within, unload_lora, without, remove],
        [attach, without, load_lora, within, remove, unload_lora],
        [attach, load_lora, within, within, unload_lora, without, load_lora, within, unload_lora, remove],
        [attach, load_lora, remove, unload_lora],
        [attach, load_lora, unload_lora, remove],
        [load_lora, attach, unload_lora, load_lora, within, remove, unload_lora],
    ]
    for order in orders:
        for act in order:
            act(pipe)
        assert torch.equal(generate(pipe), plain)
        assert not any("forward" in vars(module) for module in pipe.transformer.modules())
    load_lora(pipe)
    assert torch.equal(generate(pipe), plain_lora)


def test_exactly_the_scheduled_layers_run_with_lora():
    pytest.importorskip("peft")
    pipe = flux_pipeline()
    plan = random_plan(pipe, 2)
    with festina.accelerate(pipe, plan) as run:
        load_lora(pipe)
        ran = []
        name = next(site for site in plan.sites if site.endswith("proj_mlp") and 1 < len(plan.computed_steps(site)) < 4)
        layer = pipe.transformer.get_submodule(name)
        layer.base_layer.register_forward_hook(lambda *_: ran.append(run.clock.step))
        generate(pipe)
        assert tuple(ran) == plan.computed_steps(name)


def test_a_module_put_in_the_place_of_a_site_is_served():
    pipe = pixart_pipeline()
    plan = random_plan(pipe, 3)
    with reference(pipe, plan):
        wanted = generate(pipe)
    block, (name, *_) = pipe.transformer.transformer_blocks[1], [s.path for s in component_sites(pipe.transformer)]
    with festina.accelerate(pipe, plan):
        generate(pipe)
        first = block.ff
        block.ff = type(first)(16, activation_fn="gelu-approximate")
        block.ff.load_state_dict(first.state_dict())
        block.ff.eval()
        assert torch.equal(generate(pipe), wanted)
        assert "forward" not in vars(first)
    assert name
    assert "forward" not in vars(block.ff)


def test_a_wrapper_nowhere_to_be_found_is_an_error_that_changes_nothing():
    pipe = pixart_pipeline()
    festina.apply(pipe, random_plan(pipe, density=0.0))
    module = pipe.transformer.transformer_blocks[1].ff
    ours = vars(module).pop("forward")
    before = snapshot(pipe)
    with pytest.raises(FestinaError, match="was replaced again"):
        festina.remove(pipe)
    assert snapshot(pipe) == before
    vars(module)["forward"] = ours
    festina.remove(pipe)
