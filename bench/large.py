"""Plans on denoisers of full size on a CUDA GPU: exactness, seconds and bytes.

Builds transformers of the size of PixArt-alpha and FLUX.1-dev with random weights in bfloat16, at 256 x 256 pixels, and
drives them by the explicit clock. Prints two Markdown tables:

- whether a plan that computes everything gives the bits of the untouched denoiser, whether a random plan gives the bits
  of the same schedule made by hooks, whether the store is empty afterwards, and the bytes held as predicted before the
  run and as measured in it;
- seconds of a run untouched and under FORA at four intervals, from interleaved rounds, as ratios to untouched, beside
  the ratio of MACs, the bytes held, and the ratios ECAD recorded (arXiv 2506.15682: released schedules, one RTX A6000,
  fp16 / bf16 at batch 100 / 18, seconds of the whole pipeline call with the VAE).

The file that `--out` names also has the peak of the GPU's allocator in each run. Ends with exit code 1 if anything is
not exact. It needs diffusers and Festina only; `--tiny` tries it out on a CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from models import Model, computing_all, flux, pixart, random_plan, same, sample, sample_by
from timing import (
    Figures,
    at_least,
    command,
    describe,
    interleaved,
    markdown,
    nothing,
    ratio,
    run_program,
    save_record,
    seconds_of,
    tell,
    times,
)
from torch import Tensor, nn

from festina.cost import held_bytes, mac_table, plan_macs
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.methods import fora
from festina.plan import COMPUTE, Plan
from festina.sites import resolve, site_modules

TYPE = torch.bfloat16
INTERVALS = (2, 3, 4, 5)
EXACTNESS_STEPS = 6

ECAD_RATIOS = {
    "PixArt-alpha": {"FORA 2": 1.65, "FORA 3": 2.01, "FORA 4": 2.37, "FORA 5": 2.60},
    "FLUX.1-dev": {"FORA 2": 1.83, "FORA 3": 2.44, "FORA 4": 3.12, "FORA 5": 3.63},
}
"""Seconds uncached / seconds under FORA, from the latencies recorded with ECAD's released schedules."""


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    parser = command(__doc__, rounds=7)
    parser.add_argument("--steps", type=at_least(2), default=20, help="sampling steps of a timed run (20)")
    parser.add_argument("--pictures", type=at_least(1), default=1, help="pictures per call (1)")
    parser.add_argument("--models", nargs="+", choices=list(ECAD_RATIOS), default=list(ECAD_RATIOS))
    parser.add_argument("--tiny", action="store_true", help="small denoisers on the CPU, to try the program out")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        raise FestinaError("torch finds no CUDA device here, and these denoisers need one; --tiny runs small ones.")
    device = torch.device("cpu" if asked.tiny else "cuda")
    found: Figures = {}
    for name in asked.models:
        tell(f"building {name}")
        model = tiny(name, asked.pictures) if asked.tiny else full_size(name, asked.pictures, device)
        found[name] = {"exactness": exactness(model), "speed": speed(model, asked.steps, asked.rounds)}
        # The next one may need the memory.
        del model
        gc.collect()
        torch.cuda.empty_cache()
    print(table_of_exactness(found))
    print(table_of_speed(found))
    print(f"{asked.rounds} rounds of {asked.steps} steps, {asked.pictures} pictures a call; {describe(device)}")
    save_record(asked, "large", found, device)
    if wrong := [f"{name}: {flag}" for name in found for flag, holds in _flags(found[name]) if not holds]:
        raise FestinaError(f"not exact: {', '.join(wrong)}.")
    return found


def full_size(name: str, pictures: int, device: torch.device) -> Model:
    """A denoiser of the published size, called for pictures of 256 x 256 pixels."""
    if name == "PixArt-alpha":
        return pixart(name, 28, 16, 72, 32, 4096, 120, 2 * pictures, device, TYPE)
    return flux(name, 19, 38, 24, (16, 56, 56), 16, 4096, 512, pictures, device, TYPE)


def tiny(name: str, pictures: int) -> Model:
    """The same classes, small, on the CPU."""
    device = torch.device("cpu")
    if name == "PixArt-alpha":
        return pixart(name, 3, 2, 16, 8, 16, 5, 2 * pictures, device, TYPE)
    return flux(name, 2, 2, 2, (4, 4, 8), 4, 16, 5, pictures, device, TYPE)


def exactness(model: Model) -> Figures:
    """Whether plans do to a denoiser what they say and nothing else."""
    plain = sample(model, EXACTNESS_STEPS)
    with accelerate(model.denoiser, computing_all(model.denoiser, EXACTNESS_STEPS)) as run:
        computing = same(sample_by(model, run, EXACTNESS_STEPS), plain)
        empty = len(run.store) == 0
    plan = random_plan(model.denoiser, EXACTNESS_STEPS, 0.5, seed=0)
    wanted = by_hooks(model, plan)
    with accelerate(model.denoiser, plan) as run:
        scheduled = sample_by(model, run, EXACTNESS_STEPS)
        empty = empty and len(run.store) == 0
        report = run.report()
    predicted = held(plan, model)
    return {
        "sites": len(model.sites),
        "all_finite": all(bool(output.isfinite().all()) for output in plain),
        "all_compute_bit_identical": computing,
        "schedule_equals_reference": same(scheduled, wanted),
        "schedule_changes_the_output": not same(scheduled, plain),
        "store_empty": empty,
        "untouched_after_removal": same(sample(model, EXACTNESS_STEPS), plain),
        "computed": sum(report.computed.values()),
        "computed_by_plan": int(plan.mask().sum()),
        "peak_bytes_predicted": predicted,
        "peak_bytes_measured": report.peak_bytes,
        "peak_bytes_as_predicted": predicted == report.peak_bytes,
    }


def by_hooks(model: Model, plan: Plan) -> list[Tensor]:
    """The schedule of a plan by another route: everything is computed, and hooks swap in the remembered outputs."""
    memory: dict[str, Any] = {}
    step = 0

    def swapping(name: str, column: int) -> Callable[..., Any]:
        def swap(module: nn.Module, args: Any, output: Any) -> Any:
            if plan.steps[step].actions[column] == COMPUTE:
                memory[name] = output
            return memory[name]

        return swap

    def next_step() -> None:
        nonlocal step
        step += 1

    handles = [
        site_modules(model.denoiser, site)[0].register_forward_hook(swapping(site.name, column))
        for column, site in enumerate(resolve(model.denoiser, plan.sites))
    ]
    try:
        return sample(model, len(plan.steps), next_step)
    finally:
        for handle in handles:
            handle.remove()


def speed(model: Model, steps: int, rounds: int) -> Figures:
    """Seconds, MACs and bytes of a run, untouched and under FORA."""
    plans = {f"FORA {interval}": fora(model.denoiser, steps, interval) for interval in INTERVALS}
    runs: dict[str, Callable[[], float]] = {"uncached": lambda: seconds_of(lambda: sample(model, steps), _wait(model))}
    runs |= {label: _timed(model, plan) for label, plan in plans.items()}
    tell(f"{model.name}: timing")
    seconds = interleaved(runs, rounds)
    prices = mac_table(model.denoiser, model.traced)
    uncached = steps * prices.full.total
    # The allocator's peak says what a run really needs; it is read in a run of its own, apart from the timing.
    allocated = {label: _allocated(model, run) for label, run in runs.items()}
    return {
        label: {
            "seconds": spent,
            "ratio": ratio(seconds["uncached"], spent),
            "macs": plan_macs(plans[label], prices).total if label in plans else uncached,
            "macs_uncached": uncached,
            "peak_bytes_predicted": held(plans[label], model) if label in plans else 0,
            "peak_bytes_measured": _measured_bytes(model, plans[label]) if label in plans else 0,
            "allocated_bytes": allocated[label],
        }
        for label, spent in seconds.items()
    }


def held(plan: Plan, model: Model) -> int:
    """Bytes a plan holds at most, as predicted before it runs."""
    return held_bytes(plan, model.denoiser, model.traced, model.latents.element_size())


def table_of_exactness(found: Figures) -> str:
    """The first table in Markdown."""
    headings = ("Denoiser", "Sites", "Computing all", "Schedule", "Store empty", "Held, predicted", "Held, measured")
    rows = []
    for name, part in found.items():
        flags = part["exactness"]
        rows.append(
            (
                name,
                flags["sites"],
                "same bits" if flags["all_compute_bit_identical"] else "OTHER BITS",
                "same bits" if flags["schedule_equals_reference"] else "OTHER BITS",
                "yes" if flags["store_empty"] else "NO",
                f"{flags['peak_bytes_predicted']:,}",
                f"{flags['peak_bytes_measured']:,}",
            )
        )
    return markdown(headings, rows)


def table_of_speed(found: Figures) -> str:
    """The second table in Markdown."""
    headings = (
        "Denoiser",
        "Run",
        "Seconds",
        "Ratio",
        "Ratio of MACs",
        "ECAD, A6000",
        "Held, predicted",
        "Held, measured",
    )
    rows = []
    for name, part in found.items():
        for label, run in part["speed"].items():
            recorded = ECAD_RATIOS[name].get(label)
            rows.append(
                (
                    name,
                    label,
                    f"{median(run['seconds']):.4f}",
                    times(run["ratio"]),
                    times(run["macs_uncached"] / run["macs"]),
                    "" if recorded is None else times(recorded),
                    f"{run['peak_bytes_predicted'] / 2**20:.1f} MiB",
                    f"{run['peak_bytes_measured'] / 2**20:.1f} MiB",
                )
            )
    return markdown(headings, rows)


def _flags(found: Figures) -> list[tuple[str, bool]]:
    """What has to hold of a denoiser."""
    flags = [(flag, holds) for flag, holds in found["exactness"].items() if isinstance(holds, bool)]
    for label, run in found["speed"].items():
        flags.append((f"bytes held under {label}", run["peak_bytes_predicted"] == run["peak_bytes_measured"]))
    return flags


def _timed(model: Model, plan: Plan) -> Callable[[], float]:
    def seconds() -> float:
        with accelerate(model.denoiser, plan) as run:
            return seconds_of(lambda: sample_by(model, run, len(plan.steps)), _wait(model))

    return seconds


def _wait(model: Model) -> Callable[[], None]:
    return torch.cuda.synchronize if model.latents.is_cuda else nothing


def _measured_bytes(model: Model, plan: Plan) -> int:
    with accelerate(model.denoiser, plan) as run:
        sample_by(model, run, len(plan.steps))
        return run.report().peak_bytes


def _allocated(model: Model, run: Callable[[], float]) -> int | None:
    """Most bytes the allocator of the GPU gave out in a run; None on a CPU, which keeps no count."""
    if not model.latents.is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    run_program(main)
