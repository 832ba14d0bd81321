"""What skipping one component saves in seconds, against its price in the latency model and in MACs.

Runs the denoiser of `scenes` by plans that reuse one group of sites in every second step and compute the rest, and by
the plan that computes everything, in interleaved rounds. Prints a Markdown table: per group the seconds saved per
skipped component, the seconds the fitted latency model (festina.latency) gives it, the share of a step these savings
make up, and its share of the MACs. Below it the fit of the latency model: predicted against measured seconds of plans
that it was not fitted on, with the largest and the mean relative error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np
import torch
from models import Model, around_pixart, computing_all, random_plan, sample_by
from timing import (
    Figures,
    at_least,
    command,
    describe,
    interleaved,
    markdown,
    run_program,
    save_record,
    seconds_of,
    tell,
)

from festina.cost import mac_table
from festina.executor import accelerate
from festina.latency import LatencyModel, fit, probe_plans
from festina.methods import fora
from festina.plan import Plan
from festina.zoo import load

CPU = torch.device("cpu")
CAPTION_TOKENS = 20
EVERYTHING = "everything computed"


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    parser = command(__doc__, rounds=9)
    parser.add_argument("--steps", type=at_least(6), default=20, help="sampling steps (20)")
    parser.add_argument("--pictures", type=at_least(1), default=8, help="pictures per call, two rows each (8)")
    asked = parser.parse_args(arguments)
    model = around_pixart("scenes", load("scenes").transformer, CAPTION_TOKENS, 2 * asked.pictures)
    figures = measure(model, asked.steps, asked.rounds)
    print(table_of_groups(figures))
    print(table_of_fit(figures))
    errors = figures["latency_model"]
    print(f"Relative error: {errors['mean_error']:.1%} on average, {errors['largest_error']:.1%} at most.")
    print(f"{asked.rounds} rounds of {asked.steps} steps with {asked.pictures} pictures; {describe(CPU)}")
    save_record(asked, "skipped", figures, CPU)
    return figures


def measure(model: Model, steps: int, rounds: int) -> Figures:
    """Time all plans together and compare what was saved with what was priced."""
    name, sites = type(model.denoiser).__name__, model.sites
    alternating = {f"{group} in every second step": plan for group, plan in alternating_plans(model, steps).items()}
    probes = {f"probe {number}": plan for number, plan in enumerate(probe_plans(name, sites, steps))}
    unseen = unseen_plans(model, steps)
    plans = {EVERYTHING: computing_all(model.denoiser, steps)} | alternating | probes | unseen
    tell(f"{len(plans)} plans of {name}")
    seconds = interleaved({label: _timed(model, plan) for label, plan in plans.items()}, rounds)
    middle = {label: median(spent) for label, spent in seconds.items()}
    fitted = fit([(plan, middle[label]) for label, plan in probes.items()], sites)
    predicted = {label: fitted.seconds(plan) for label, plan in unseen.items()}
    errors = [abs(predicted[label] / middle[label] - 1) for label in unseen]
    return {
        "step_seconds": middle[EVERYTHING] / steps,
        "groups": group_figures(model, fitted, alternating, seconds),
        "macs_per_step": mac_table(model.denoiser, model.traced).full.total,
        "latency_model": {
            "fixed_per_step": fitted.fixed_per_step,
            "predicted": predicted,
            "measured": {label: middle[label] for label in unseen},
            "largest_error": max(errors),
            "mean_error": fmean(errors),
        },
        "seconds": seconds,
    }


def group_figures(
    model: Model, fitted: LatencyModel, alternating: dict[str, Plan], seconds: dict[str, list[float]]
) -> Figures:
    """Per group: how often it was skipped, what each skip saved, and what it was priced at."""
    prices, figures = mac_table(model.denoiser, model.traced), {}
    for group, (label, plan) in zip(fitted.groups, alternating.items(), strict=True):
        skips = int((~plan.mask()).sum())
        per_round = zip(seconds[EVERYTHING], seconds[label], strict=True)
        macs = sum(prices.sites[site].total for site in group.sites)
        step = median(seconds[EVERYTHING]) / len(plan.steps)
        saved = median(whole - less for whole, less in per_round) / skips
        figures[group.name] = {
            "sites": len(group.sites),
            "skips": skips,
            "saved_seconds_per_skip": saved,
            "model_seconds": group.seconds,
            "saved_share_of_step": saved * len(group.sites) / step,
            "macs": macs,
            "share_of_macs": macs / prices.full.total,
        }
    return figures


def alternating_plans(model: Model, steps: int) -> dict[str, Plan]:
    """By group of sites, the plan that reuses it in every second step and computes everything else."""
    plans, names = {}, [site.name for site in model.sites]
    for group in dict.fromkeys(site.group for site in model.sites):
        mask = np.ones((steps, len(names)), dtype=bool)
        mask[1::2, [site.group == group for site in model.sites]] = False
        plans[group] = Plan.from_mask(type(model.denoiser).__name__, names, mask)
    return plans


def unseen_plans(model: Model, steps: int) -> dict[str, Plan]:
    """Plans the latency model is not fitted on: FORA at other intervals, and random ones."""
    plans = {f"FORA {interval}": fora(model.denoiser, steps, interval) for interval in (3, 5)}
    shares = ((25, 1), (50, 2), (75, 3))
    return plans | {
        f"random, {share} % computed": random_plan(model.denoiser, steps, share / 100, seed) for share, seed in shares
    }


def table_of_groups(figures: Figures) -> str:
    """What a skip saves, in Markdown."""
    headings = ("Group", "Skips", "Saved per skip", "Latency model", "Share of a step", "Share of MACs")
    rows = [
        (
            f"`{name}`",
            found["skips"],
            f"{1e6 * found['saved_seconds_per_skip']:.1f} µs",
            f"{1e6 * found['model_seconds']:.1f} µs",
            f"{found['saved_share_of_step']:.1%}",
            f"{found['share_of_macs']:.1%}",
        )
        for name, found in figures["groups"].items()
    ]
    return markdown(headings, rows)


def table_of_fit(figures: Figures) -> str:
    """Predicted against measured seconds, in Markdown."""
    found = figures["latency_model"]
    rows = [
        (label, f"{1000 * predicted:.1f} ms", f"{1000 * measured:.1f} ms", f"{predicted / measured - 1:+.1%}")
        for label, predicted, measured in (
            (label, predicted, found["measured"][label]) for label, predicted in found["predicted"].items()
        )
    ]
    return markdown(("Plan not fitted on", "Predicted", "Measured", "Error"), rows)


def _timed(model: Model, plan: Plan) -> Callable[[], float]:
    def seconds() -> float:
        with accelerate(model.denoiser, plan) as run:
            return seconds_of(lambda: sample_by(model, run, len(plan.steps)))

    return seconds


if __name__ == "__main__":
    run_program(main)
