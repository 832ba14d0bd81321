"""Peers that are packages of their own: cache-dit's DBCache, and DeepCache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from festina.executor.attach import denoisers_of
from festina.peers.peer import Knobs, Method, SwitchOff

_ORDER = "taylorseer_order"
"""The one knob of DBCache's Taylor calibrator that is used; the other knobs are those of its own configuration."""


def _dbcache(pipe: Any, knobs: Knobs) -> SwitchOff:
    import cache_dit

    own = {name: list(value) if isinstance(value, tuple) else value for name, value in knobs.items() if name != _ORDER}
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=knobs[_ORDER]) if _ORDER in knobs else None
    quiet = ExitStack()
    quiet.enter_context(_errors_alone("CACHE_DIT"))
    try:
        cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**own), calibrator_config=calibrator)
    except BaseException:
        quiet.close()
        raise

    def switch_off() -> None:
        with quiet:
            cache_dit.disable_cache(pipe)

    return switch_off


@contextmanager
def _errors_alone(name: str) -> Iterator[None]:
    """Keep what a library tells of its doings off the terminal, but for errors; its files of logs go on.

    Each module of cache-dit has a logger and a level of its own, but all write by the handler of this one. That it was
    switched off it tells as a warning.
    """
    handlers = [each for each in logging.getLogger(name).handlers if not isinstance(each, logging.FileHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.ERROR))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _dbcache_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    """One block computes first. Thresholds and limits as in cache-dit's own tables (its `bench/cache/README.md`), and
    its masks for whole steps."""
    import cache_dit

    # It knows pipelines by the beginning of their class's name.
    if not cache_dit.BlockAdapterRegister.is_supported(pipe) or isinstance(pipe, nn.Module):
        return
    shared = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": min(4, max(1, steps // 4))}
    for threshold, longest in ((0.08, -1), (0.12, 4), (0.24, 6)):
        dynamic = {**shared, "residual_diff_threshold": threshold, "max_continuous_cached_steps": longest}
        yield dynamic
        yield {**dynamic, _ORDER: 1}
    if steps in (4, 6) or steps >= 8:
        for policy in ("slow", "medium", "fast"):
            mask = cache_dit.steps_mask(total_steps=steps, mask_policy=policy)
            yield {**shared, "steps_computation_mask": tuple(mask), "steps_computation_policy": "static"}


def _deepcache(pipe: Any, knobs: Knobs) -> SwitchOff:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(**knobs)
    helper.enable()
    disable: SwitchOff = helper.disable
    return disable


def _deepcache_settings(pipe: Any, steps: int) -> Iterable[Knobs]:
    denoiser = denoisers_of(pipe)[0][1]
    levels = [*getattr(denoiser, "down_blocks", []), *getattr(denoiser, "up_blocks", [])]
    known = type(denoiser).__name__ in ("UNet2DConditionModel", "UNetSpatioTemporalConditionModel")
    if isinstance(pipe, nn.Module) or not known or not all(hasattr(level, "resnets") for level in levels):
        return []
    return [{"cache_interval": interval, "cache_branch_id": 0} for interval in (2, 3, 5)]


METHODS = (
    Method("DBCache", "cache-dit", "cache_dit", _dbcache_settings, _dbcache),
    Method("DeepCache", "DeepCache", "DeepCache", _deepcache_settings, _deepcache),
)
