"""Denoising MCMC against the samplers that begin at pure noise, on an unconditional pipeline, at equal network calls.

Prints, as Markdown, the Frechet distance of drawn pictures to renders (features of the judge of scenes, pictures
enlarged to its size) for each sampler and budget, with the network calls per picture as counted at the network. The row
of fresh renders is what no sampler can be expected to pass. `--sheet FILE` writes pictures of the largest budget, a row
of each sampler.

- DDIM: the pipeline's own scheduler. data 2: `PlanScheduler` in its place.
- KAR1, KAR2: Heun's method without and with churn, from pure noise.
- DLG+KAR1, DLG+KAR2: chains, of whose budget about a quarter goes into nodes of the integrator. What the chains need
  before their first picture is counted in a column of its own, spread over the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scenes_score import COLUMNS, contact_sheet
from timing import Figures, at_least, describe, markdown, run_program, save_record, tell
from torch import Tensor
from torch.nn import functional

from festina.errors import FestinaError
from festina.metrics.distances import frechet_distance
from festina.report.whole import write_whole_bytes
from festina.samplers import PlanScheduler
from festina.samplers.denoising_mcmc import DenoisingChains, LangevinGibbs, NoiseReader
from festina.samplers.karras import KarrasIntegrator, unit_noise
from festina.samplers.noise_classifier import load_noise_classifier
from festina.samplers.row_denoiser import RowDenoiser
from festina.zoo import load, shipped_judge
from festina.zoo.grammar import sample_scenes
from festina.zoo.loading import UNCONDITIONAL
from festina.zoo.unconditional import PICTURE_SIZE, SmallScenes, shipped_noise_classifier

REFERENCE_SEED, FRESH_SEED, FIRST_SEED = 900, 901, 6_000_000
"""Seeds of the renders that are the reference, of those that are a row, and of the first noise."""

CHURN = 80.0

Sampler = Callable[[int, torch.Generator], Tensor]
"""From network calls and a generator to pictures (images, 3, height, width) in [0, 1]."""


@dataclass(frozen=True)
class Row:
    """What a sampler reaches: calls per picture, those of the chains' start per picture, Frechet distance."""

    sampler: str
    calls: float
    start_calls: float
    frechet: float


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    if asked.images % asked.chains:
        raise FestinaError(f"{asked.images} pictures of {asked.chains} chains: give --images a multiple of --chains.")
    rows = measure(asked)
    cells = [(row.sampler, f"{row.calls:g}", f"{row.start_calls:.1f}", f"{row.frechet:.1f}") for row in rows]
    print(markdown(("sampler", "calls per picture", "calls of the start", "Frechet distance"), cells))
    print(f"{asked.images} pictures, {asked.chains} chains, step size {asked.step_size:g}; {describe(_cpu())}")
    found = {"rows": [asdict(row) for row in rows]}
    save_record(asked, "denoising_mcmc", found, _cpu())
    return found


def measure(asked: argparse.Namespace) -> list[Row]:
    """Draw with every sampler and budget, and look at the pictures."""
    pipe, judge = load(asked.model), shipped_judge()
    classifier = (
        shipped_noise_classifier() if asked.classifier is None else load_noise_classifier(Path(asked.classifier))
    )
    known = samplers(pipe, classifier, asked)

    def distance(pictures: Tensor) -> float:
        return frechet_distance(_features(judge, pictures), reference)

    reference = _features(judge, SmallScenes().render(sample_scenes(asked.reference, REFERENCE_SEED), REFERENCE_SEED))
    fresh = SmallScenes().render(sample_scenes(asked.images, FRESH_SEED), FRESH_SEED)
    rows, shown = [Row("renders", 0, 0, distance(fresh))], [fresh[:COLUMNS]]
    for budget in sorted(asked.calls):
        for name, sampler in known.items():
            with _counting(pipe) as counted, torch.no_grad():
                pictures = sampler(budget, torch.Generator().manual_seed(FIRST_SEED))
            total = sum(counted) / asked.images
            start = settings_of(budget, 0.0, asked).start_calls * asked.chains / asked.images if "DLG" in name else 0
            rows.append(Row(name, total - start, start, distance(pictures)))
            tell(f"{name}, {total - start:g} calls and {start:.1f} of the start: {rows[-1].frechet:.1f}")
            if budget == max(asked.calls):
                shown.append(pictures[:COLUMNS])
    if asked.sheet is not None:
        write_whole_bytes(Path(asked.sheet), contact_sheet(torch.cat(shown)))
    return rows


def samplers(pipe: Any, classifier: NoiseReader, asked: argparse.Namespace) -> Mapping[str, Sampler]:
    """Every sampler by name."""
    own, planned = pipe.scheduler, PlanScheduler.from_scheduler(pipe.scheduler)
    known: dict[str, Sampler] = {
        "DDIM": partial(_by_scheduler, pipe, own, asked),
        "data 2": partial(_by_scheduler, pipe, planned, asked),
    }
    for name, churn in (("KAR1", 0.0), ("KAR2", CHURN)):
        known[name] = partial(_by_integrator, pipe, float(classifier.sigmas[-1]), churn, asked)
    for name, churn in (("DLG+KAR1", 0.0), ("DLG+KAR2", CHURN)):
        known[name] = partial(_by_chains, pipe, classifier, churn, asked)
    return known


def settings_of(budget: int, churn: float, asked: argparse.Namespace) -> LangevinGibbs:
    """Chains that take a number of network calls per picture, about half of them to walk."""
    integrator = KarrasIntegrator(max(2, budget // 4), churn=churn)
    return LangevinGibbs(
        step_size=asked.step_size,
        start_step_size=asked.step_size,
        skip=budget - integrator.calls,
        chains=asked.chains,
        integrator=integrator,
    )


def _by_scheduler(
    pipe: Any, scheduler: Any, asked: argparse.Namespace, budget: int, generator: torch.Generator
) -> Tensor:
    parts = []
    for count in _batches(asked):
        pipe.scheduler = scheduler
        made = pipe(batch_size=count, num_inference_steps=budget, generator=generator, output_type="np").images
        parts.append(torch.from_numpy(made).permute(0, 3, 1, 2))
    return torch.cat(parts)


def _by_integrator(
    pipe: Any, highest: float, churn: float, asked: argparse.Namespace, budget: int, generator: torch.Generator
) -> Tensor:
    denoiser, integrator, parts = RowDenoiser(pipe), KarrasIntegrator((budget + 1) // 2, churn=churn), []
    for count in _batches(asked):
        start = highest * unit_noise((count, *denoiser.shape), torch.empty(0), generator)
        parts.append(integrator(denoiser, start, torch.full((count,), highest), generator))
    return _as_pictures(torch.cat(parts))


def _by_chains(
    pipe: Any,
    classifier: NoiseReader,
    churn: float,
    asked: argparse.Namespace,
    budget: int,
    generator: torch.Generator,
) -> Tensor:
    chains = DenoisingChains(pipe, classifier, settings_of(budget, churn, asked), generator)
    return _as_pictures(chains.draw(asked.images))


def _batches(asked: argparse.Namespace) -> Iterator[int]:
    """Numbers of pictures of each call: as many at once as there are chains."""
    return iter([asked.chains] * (asked.images // asked.chains))


@contextmanager
def _counting(pipe: Any) -> Iterator[list[int]]:
    """Rows of every network call made meanwhile; the scheduler is afterwards as it was."""
    counted: list[int] = []
    scheduler = pipe.scheduler
    handle = pipe.unet.register_forward_pre_hook(lambda _, arguments: counted.append(len(arguments[0])))
    try:
        yield counted
    finally:
        handle.remove()
        pipe.scheduler = scheduler


def _as_pictures(samples: Tensor) -> Tensor:
    return (samples / 2 + 0.5).clamp(0, 1)


def _features(judge: Any, pictures: Tensor) -> Tensor:
    scale = 64 // PICTURE_SIZE
    with torch.no_grad():
        found: Tensor = judge.features(functional.interpolate(pictures, scale_factor=scale, mode="bilinear"))
    return found


def _cpu() -> torch.device:
    return torch.device("cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default=UNCONDITIONAL, help=f"such a pipeline or its folder ({UNCONDITIONAL})"
    )
    parser.add_argument("--classifier", help="folder of a noise classifier (the one that ships)")
    parser.add_argument("--calls", nargs="+", type=at_least(6), default=[8, 12, 20, 40], help="per picture (8 to 40)")
    parser.add_argument("--images", type=at_least(COLUMNS), default=256, help="pictures of each row (256)")
    parser.add_argument("--chains", type=at_least(1), default=32, help="side by side, and pictures per call (32)")
    parser.add_argument("--step-size", type=float, default=0.8, help="eta of the chains (0.8)")
    parser.add_argument("--reference", type=at_least(2), default=2000, help="renders to compare with (2000)")
    parser.add_argument("--out", type=Path, help="JSON file that receives the figures, with hardware and versions")
    parser.add_argument("--sheet", help="picture file that receives some pictures")
    return parser


if __name__ == "__main__":
    run_program(main)
