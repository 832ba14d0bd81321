"""Measuring candidates: pictures of one workload, made by a plan, judged by a reward, kept in the archive."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import diffusers
import torch

from festina.errors import FestinaError
from festina.executor import Run, accelerate
from festina.metrics.reward import Reward, scores_of
from festina.plan import Plan
from festina.search.archive import Archive, Made, WorkloadKey
from festina.search.evaluation import Evaluation
from festina.search.generation import generate_batch
from festina.search.workload import Workload, device_kind, pipeline_fingerprint
from festina.sites import component_sites, find_denoiser

WARM_UP_STEPS = 2


class Evaluator:
    """Evaluates plans of one pipeline on one workload; what the archive knows is not run again.

    All candidates share prompts and noise: every picture has a CPU generator of its own, seeded by the workload, so
    that scores differ by the plan alone. Before the first candidate that has to run, one batch of 2 steps warms the
    pipeline up untimed.

    Args:
        pipe: a diffusers pipeline that takes prompts. It has to stay as it is while this evaluator is in use.
        workload: prompts, noise and call settings.
        reward: judges the pictures.
        archive: where evaluations are kept.
        price: MACs of a plan, known before it runs.
        fingerprint: the pipeline's fingerprint if it is known already; computed if not.

    Raises:
        FestinaError: on construction, if the pipeline's weights are not in memory.
    """

    def __init__(
        self,
        pipe: Any,
        workload: Workload,
        reward: Reward,
        archive: Archive,
        price: Callable[[Plan], int],
        fingerprint: str | None = None,
    ) -> None:
        self.pipe = pipe
        self.workload = workload
        self.reward = reward
        self.archive = archive
        self.price = price
        self.fingerprint = fingerprint or pipeline_fingerprint(pipe)
        self._warm = False

    def on(self, workload: Workload) -> Evaluator:
        """An evaluator of the same pipeline, reward and archive on another workload, such as held-out prompts."""
        return Evaluator(self.pipe, workload, self.reward, self.archive, self.price, self.fingerprint)

    @property
    def key(self) -> WorkloadKey:
        """What evaluations of plans are archived under."""
        return self.workload.key(self.fingerprint, self.reward)

    @property
    def conditions(self) -> str:
        """Workload, hardware and library versions in a sentence."""
        work = self.workload
        return (
            f"{len(work.prompts)} prompts x {work.images_per_prompt} pictures in batches of {work.batch}, "
            f"{self.reward.name} reward, {hardware(self.pipe)}, {_versions()}"
        )

    def evaluate(self, plan: Plan) -> Evaluation:
        """Run a plan over the workload, or look up what it gave.

        Raises:
            FestinaError: the plan does not fit the pipeline or the workload's steps, the pipeline or the reward gives
                no usable answer, or the archive cannot be written.
        """
        if len(plan.steps) != self.workload.steps:
            raise FestinaError(
                f"a plan of {len(plan.steps)} steps on a workload of {self.workload.steps}; use "
                f"plan.resample({self.workload.steps})."
            )
        canonical = plan.canonical()
        found = self.archive.get_or_make(
            canonical, self.key, lambda: self._measure(canonical, self.workload, self.price(canonical))
        )
        # The archived plan runs alike, but may carry another history, and an older price.
        return replace(found, plan=canonical, macs=self.price(canonical))

    def untouched(self, steps: int) -> Evaluation:
        """The pipeline with no plan at all, at any number of steps: what fewer steps cost and give.

        Raises:
            FestinaError: `steps` is less than 1, or as `evaluate`.
        """
        workload = replace(self.workload, steps=steps)
        denoiser = find_denoiser(self.pipe)
        names = [site.name for site in component_sites(denoiser)]
        macs = self.price(Plan.computing_all(type(denoiser).__name__, names, steps))
        key = workload.key(self.fingerprint, self.reward)
        found = self.archive.get_or_make(None, key, lambda: self._measure(None, workload, macs))
        return replace(found, macs=macs)

    def _measure(self, plan: Plan | None, workload: Workload, macs: int) -> Made:
        if not self._warm:
            generate_batch(
                self.pipe, workload.pictures()[: workload.batch], workload, min(WARM_UP_STEPS, workload.steps)
            )
            self._warm = True
        pictures = workload.pictures()
        scores: list[float] = []
        seconds, peak_bytes = 0.0, 0
        attached: AbstractContextManager[Run | None] = accelerate(self.pipe, plan) if plan else nullcontext()
        with attached as run:
            for start in range(0, len(pictures), workload.batch):
                part = pictures[start : start + workload.batch]
                began = time.perf_counter()
                images = generate_batch(self.pipe, part, workload, workload.steps)
                seconds += time.perf_counter() - began
                scores += scores_of(self.reward, images, [prompt for prompt, _ in part], len(part))
                if run is not None:
                    peak_bytes = max(peak_bytes, run.report().peak_bytes)
        evaluation = Evaluation(
            plan, workload.steps, tuple(scores), workload.images_per_prompt, macs, seconds, peak_bytes
        )
        return Made(evaluation, json.dumps({"hardware": hardware(self.pipe), "libraries": _versions()}))


def hardware(pipe: Any) -> str:
    """The machine's part that a pipeline runs on, in words."""
    kind = device_kind(pipe)
    if kind == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return kind


def _versions() -> str:
    return f"torch {torch.__version__}, diffusers {diffusers.__version__}"
