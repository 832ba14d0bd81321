"""Whether a plan fits a denoiser that is free for one, and what it says of each of its sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from festina.cost import values_held
from festina.errors import FestinaError
from festina.executor.compiled import uncompiled
from festina.executor.scheduler import MARK
from festina.executor.serving import Column
from festina.names import RESIDUAL, parse
from festina.plan import COMPUTE, FORECASTS, GATED, PARTIAL, REUSE, SKIP, Plan
from festina.sites import resolve
from festina.token_cost import BY_TOKEN


def has_sites(denoiser: nn.Module, plan: Plan) -> bool:
    try:
        resolve(uncompiled(denoiser), plan.sites)
    except FestinaError:
        return False
    return True


def columns_of(denoiser: nn.Module, plan: Plan) -> tuple[Column, ...]:
    """What a plan says of each site, with one step more than it has: one that computes and keeps everything."""
    name = type(denoiser).__name__
    if plan.denoiser != name:
        raise FestinaError(
            f"the plan is for {plan.denoiser}, this denoiser is a {name}. Use a plan made for this model."
        )
    columns, held = [], values_held(plan)
    for index, site in enumerate(resolve(denoiser, plan.sites)):
        # Where the denoiser is not called no site is come to. A call that finds no answer to give computes everything.
        actions = "".join(step.actions[index] if step.visits else COMPUTE for step in plan.steps)
        runnable = COMPUTE + REUSE + FORECASTS + (SKIP + GATED if site.kind == RESIDUAL else "")
        runnable += PARTIAL if site.role in BY_TOKEN else ""
        if unknown := set(actions) - set(runnable):
            raise FestinaError(
                f"{site.name}: a site of the kind {site.kind!r} cannot run the actions {sorted(unknown)}, only "
                f"{runnable!r}; it is a {site.role}."
            )
        most = tuple(held[:, index].tolist())
        shares = tuple(step.shares[index] if step.shares else 0.0 for step in plan.steps) if PARTIAL in actions else ()
        columns.append(Column(site, actions + COMPUTE, (*most, max(1, *most)), plan.basis, shares))
    return tuple(columns)


def type_of(module: nn.Module) -> str:
    """The type of a module's numbers, "" if it has none."""
    return next((str(part.dtype) for part in module.parameters() if part.is_floating_point()), "")


def check_models(denoisers: Sequence[nn.Module], plan: Plan, models: Mapping[str, nn.Module]) -> None:
    """See that the models that a plan calls are there, and speak of latents of the denoiser's kind.

    Args:
        denoisers: those that the plan is applied to, the first one first.
        plan: the plan, in canonical form.
        models: the models by name.

    Raises:
        FestinaError: they are not the ones that are given, or do not.
    """
    if plan.models != set(models):
        wanted = ", ".join(sorted(plan.models)) or "no model"
        given = ", ".join(sorted(models)) or "none"
        raise FestinaError(
            f"the plan calls {wanted} in the place of the denoiser, and {given} was given. Give exactly these, as in "
            f'models={{"small": module}} (on the command line: --with small=FOLDER).'
        )
    denoiser = uncompiled(denoisers[0])
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise FestinaError(f"the model {name!r} is a {type(model).__name__}; wanted a denoiser, a torch module.")
        if any(model is own for own in denoisers) or vars(uncompiled(model)).get(MARK) is not None:
            raise FestinaError(
                f"the model {name!r} is a denoiser of the pipeline, or has a plan of its own. Give another one, "
                f"without a plan."
            )
        if type_of(model) != type_of(denoiser):
            raise FestinaError(
                f"the model {name!r} is in {type_of(model)}, the denoiser in {type_of(denoiser)}. Load it in the same "
                f"type."
            )
        for size in ("in_channels", "out_channels"):
            mine, its = (getattr(getattr(one, "config", None), size, None) for one in (denoiser, model))
            if mine != its:
                raise FestinaError(
                    f"the model {name!r} has {size} {its}, the denoiser {mine}: they do not share their latents. Give "
                    f"a model that was trained on the latents of this pipeline."
                )


def check_gate(denoiser: nn.Module, plan: Plan) -> None:
    """See that what the gate looks at is there, and computes when it is asked.

    Raises:
        FestinaError: it is not, or does not.
    """
    gate = plan.gate
    if gate is None:
        return
    resolve(denoiser, (gate.probe,))
    table, names, probe = plan.table(), [parse(site) for site in plan.sites], parse(gate.probe)
    asked = (table == GATED).any(axis=1)
    gated = [name for index, name in enumerate(names) if GATED in table[:, index]]
    for index, name in enumerate(names):
        served = (table[asked, index] != COMPUTE).any()
        if served and name not in gated and (name == probe or name.encloses(probe) or probe.encloses(name)):
            raise FestinaError(
                f"the gate looks at {gate.probe!r}, but {name.text!r} is served in steps in which it decides. Let it "
                f"compute there."
            )
        if served and gate.decider == "row" and any(outer.encloses(name) for outer in gated):
            raise FestinaError(
                f"rows that decide for themselves want everything within the gated sites to compute; {name.text!r} "
                f"does not. Use the gate's decider 'call', or leave this site out."
            )


def check_free(denoiser: nn.Module, scheduler: Any) -> None:
    if vars(uncompiled(denoiser)).get(MARK) is not None:
        raise FestinaError("a plan is already applied to this denoiser; call festina.remove first.")
    refuse_cached(denoiser)
    if scheduler is not None and vars(scheduler).get(MARK) is not None:
        raise FestinaError(
            "this scheduler already drives another accelerated denoiser; give each pipeline a scheduler of its own, "
            "e.g. type(scheduler).from_config(scheduler.config)."
        )


def refuse_cached(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise FestinaError(
            "this denoiser runs with diffusers' own cache; call disable_cache() on it before applying a plan."
        )
