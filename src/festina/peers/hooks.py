"""The caches of diffusers itself: hooks on the modules of a transformer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from festina.errors import FestinaError
from festina.executor.attach import denoisers_of
from festina.peers.calls import Calls
from festina.peers.peer import Knobs, Method, SwitchOff
from festina.sites import component_sites, site_tree

Configuring = Callable[[Knobs, Calls], Any]
"""Makes the configuration that diffusers takes, from knobs."""


def _enable(pipe: Any, denoiser: nn.Module, configuring: Configuring, knobs: Knobs) -> SwitchOff:
    """Switch a cache of diffusers on, on one denoiser; returns what switches it off.

    Classes with `CacheMixin` are told by `enable_cache`. For the others diffusers has one function per cache and none
    that takes it off, so the hooks are taken off by name.
    """
    from diffusers import CacheMixin

    calls = Calls(pipe, denoiser)
    try:
        config = configuring(knobs, calls)
        if isinstance(denoiser, CacheMixin):
            denoiser.enable_cache(config)
            disable: SwitchOff = denoiser.disable_cache
        else:
            disable = _applied(denoiser, config)
    except BaseException:
        calls.stop()
        raise

    def switch_off() -> None:
        calls.stop()
        disable()

    return switch_off


def _applied(denoiser: nn.Module, config: Any) -> SwitchOff:
    from diffusers import hooks

    functions = {
        hooks.FirstBlockCacheConfig: hooks.apply_first_block_cache,
        hooks.TaylorSeerCacheConfig: hooks.apply_taylorseer_cache,
        hooks.MagCacheConfig: hooks.apply_mag_cache,
        hooks.PyramidAttentionBroadcastConfig: hooks.apply_pyramid_attention_broadcast,
        hooks.FasterCacheConfig: hooks.apply_faster_cache,
    }
    before = {(path, name) for path, name, _ in _hooks(denoiser)}

    def take_off() -> None:
        # Of two hooks on one module the later one has to come off first.
        for path, name, registry in reversed(list(_hooks(denoiser))):
            if (path, name) not in before:
                registry.remove_hook(name, recurse=False)

    try:
        functions[type(config)](denoiser, config)
    except BaseException:
        take_off()
        raise
    # Contexts reach the hooks that the denoiser's registry has noted; `enable_cache` has them noted anew.
    hooks.HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()
    return take_off


def _hooks(denoiser: nn.Module) -> Iterable[tuple[str, str, Any]]:
    """Path of the module, name of the hook and the registry it is in."""
    for path, module in denoiser.named_modules():
        registry = vars(module).get("_diffusers_hook")
        for name in [] if registry is None else list(registry.hooks):
            yield path, name, registry


def _everywhere(configuring: Configuring) -> Callable[[Any, Knobs], SwitchOff]:
    """Attaches to all denoisers of a pipeline."""

    def attach(pipe: Any, knobs: Knobs) -> SwitchOff:
        done: list[SwitchOff] = []

        def switch_off() -> None:
            while done:
                done.pop()()

        try:
            for _, denoiser in denoisers_of(pipe):
                done.append(_enable(pipe, denoiser, configuring, knobs))
        except BaseException:
            switch_off()
            raise
        return switch_off

    return attach


def _is_transformer(pipe: Any) -> bool:
    try:
        return not any(site_tree(denoiser).regions for _, denoiser in denoisers_of(pipe))
    except FestinaError:
        return False


def _first_block(knobs: Knobs, calls: Calls) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(**knobs)


def _first_block_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    return [{"threshold": threshold} for threshold in (0.05, 0.1, 0.2)] if _is_transformer(pipe) else []


def _taylorseer(knobs: Knobs, calls: Calls) -> Any:
    import torch
    from diffusers import TaylorSeerCacheConfig

    kind = getattr(torch, knobs.get("taylor_factors_dtype", "bfloat16"))
    return TaylorSeerCacheConfig(**{**knobs, "taylor_factors_dtype": kind})


def _taylorseer_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    """Attention as by default, though named, for the default patterns match nothing in most classes; everything, as in
    the paper; and the variant that only forecasts what comes out at the end."""
    if not _is_transformer(pipe):
        return []
    attention, everything = component_patterns(pipe, "attention"), component_patterns(pipe)
    return [
        {"cache_interval": 3, "max_order": 1, "cache_identifiers": attention},
        {"cache_interval": 5, "max_order": 1, "cache_identifiers": attention},
        {"cache_interval": 5, "max_order": 2, "cache_identifiers": everything},
        {"cache_interval": 5, "max_order": 1, "use_lite_mode": True},
    ]


def component_patterns(pipe: Any, role: str = "") -> tuple[str, ...]:
    """Regular expressions, one per kind of component, that match the modules of the component sites of a denoiser.

    Args:
        pipe: a pipeline or denoiser.
        role: only components whose role ends with it, e.g. "attention".
    """
    found: dict[str, None] = {}
    for site in component_sites(denoisers_of(pipe)[0][1]):
        if site.role.endswith(role):
            index = site.block.removeprefix(f"{site.stack}.")
            path = rf"{re.escape(site.stack)}\.\d+" if index.isdigit() else re.escape(site.block)
            found[rf"{path}\.{re.escape(site.part)}" if site.part else path] = None
    return tuple(found)


def _mag(knobs: Knobs, calls: Calls) -> Any:
    from diffusers import MagCacheConfig

    # It wants to write to them, and a list makes a tensor of their own.
    ratios = knobs.get("mag_ratios")
    return MagCacheConfig(**{**knobs, "mag_ratios": None if ratios is None else list(ratios)})


def _mag_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    """Magnitude ratios belong to one denoiser and one number of steps; `festina.peers.calibrated` fills them in."""
    if not _is_transformer(pipe) or len(denoisers_of(pipe)) > 1:
        return []
    return [{"threshold": threshold, "num_inference_steps": steps} for threshold in (0.06, 0.12, 0.24)]


def _broadcast(knobs: Knobs, calls: Calls) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(**knobs, current_timestep_callback=lambda: calls.timestep)


def _broadcast_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    if not _is_transformer(pipe):
        return
    sites = component_sites(denoisers_of(pipe)[0][1])
    knobs = {"spatial_attention_block_skip_range": 2}
    yield knobs
    wider = {}
    if any("temporal" in site.stack for site in sites):
        wider["temporal_attention_block_skip_range"] = 3
    if any(site.role == "cross-attention" for site in sites):
        wider["cross_attention_block_skip_range"] = 6
    if wider:
        yield {**knobs, **wider}


def _faster(knobs: Knobs, calls: Calls) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        **knobs, attention_weight_callback=lambda _: 0.5, current_timestep_callback=lambda: calls.timestep
    )


def _faster_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    if not _is_transformer(pipe):
        return []
    denoiser = denoisers_of(pipe)[0][1]
    kind = type(denoiser).__name__
    distilled = bool(getattr(getattr(denoiser, "config", None), "guidance_embeds", False))
    layout = "BFCHW" if kind.startswith("CogVideoX") else "BCFHW" if "3D" in kind else "BCHW"
    return [{"spatial_attention_block_skip_range": 2, "tensor_format": layout, "is_guidance_distilled": distilled}]


METHODS = tuple(
    Method(name, "diffusers", "diffusers.hooks", settings, _everywhere(configuring))
    for name, settings, configuring in (
        ("FirstBlockCache", _first_block_settings, _first_block),
        ("TaylorSeerCache", _taylorseer_settings, _taylorseer),
        ("MagCache", _mag_settings, _mag),
        ("PyramidAttentionBroadcast", _broadcast_settings, _broadcast),
        ("FasterCache", _faster_settings, _faster),
    )
)


def magnitude_ratios(pipe: Any, render: Callable[[], object]) -> tuple[float, ...]:
    """The ratios that a calibrating MagCache measures during `render`, one per step.

    Where a step has several calls, those of the first, as the user of MagCache has to choose one list.
    """
    from diffusers.hooks.mag_cache import MagCacheHeadHook

    denoiser = denoisers_of(pipe)[0][1]
    hooks = [registry.get_hook(name) for _, name, registry in _hooks(denoiser)]
    (head,) = [hook for hook in hooks if isinstance(hook, MagCacheHeadHook)]
    found: dict[str, tuple[float, ...]] = {}

    def read(module: nn.Module, args: Any, output: Any) -> None:
        state = head.state_manager.get_state()
        found[head.state_manager.context.name] = tuple(state.calibration_ratios)

    handle = denoiser.register_forward_hook(read, prepend=True)
    try:
        render()
    finally:
        handle.remove()
    return next(iter(found.values()), ())
