"""OLSS (Duan et al., arXiv 2305.14677): steps whose weights are fitted, by least squares, to a fine sampler's samples.

Each next sample is a linear combination of the noise that a run starts from and of all outputs of the network so far.
The weights hold for one model, strength of guidance and number of steps; they are scalars, so that size and number of
pictures are free. Everything here is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.compiling import compile_table
from festina.samplers.frames import Frame
from festina.samplers.recording import Trajectory, record
from festina.samplers.run import SamplerRun
from festina.samplers.table import LinearWeights, SolverStep, SolverTable
from festina.samplers.times import table_on

__all__ = ["choose_nodes", "fit_on_policy", "fit_to_teacher", "linear_form"]

Vector = NDArray[np.float64]

_HALVINGS = 40
"""Bisections of the error that each jump may make; the interval ends smaller than what float64 tells apart."""


def linear_form(table: SolverTable, frame: Frame) -> SolverTable:
    """The same sampler as weights of the first sample and all outputs: one step per network call.

    Every table has such a form, with correctors, contrasts and extrapolations too. It can only begin at its first step.

    Args:
        table: of any steps; levels as the network sees them, e.g. `PlanScheduler.run_table`.
        frame: of the model.

    Raises:
        FestinaError: a model of this frame cannot run the table, or its levels are still to be shifted.
    """
    if table.before_shift:
        raise FestinaError(
            "weights belong to levels after the shift, and the table's are before it. Use the run_table of a "
            "PlanScheduler after set_timesteps."
        )
    compiled = compile_table(table, frame)
    # What a run makes of unit vectors, one for the first sample and one for each output, are its weights.
    units = torch.eye(len(compiled.slots) + 1, dtype=torch.float64)
    run, sample, rows = SamplerRun(compiled, frame), units[0], []
    for unit in units[1:]:
        sample = run.step(unit, sample)
        rows.append(sample.numpy())
    steps = [
        SolverStep(noise, network_time=slot.network_time, linear=_weights(row[: place + 2]))
        for place, (noise, slot, row) in enumerate(zip(compiled.noises, compiled.slots, rows, strict=False))
    ]
    return SolverTable(tuple(steps), table.final_noise, start=table.start)


def fit_to_teacher(
    teacher: Trajectory, nodes: Sequence[int], ridge: float = 0.0, solver: str = "data", order: int = 2
) -> SolverTable:
    """OLSS as published: every step is fitted with the teacher's own outputs.

    What the steps before it make of a sample is not seen, so that from some ten steps on errors may grow without bound;
    `fit_on_policy` sees it.

    Args:
        teacher: a fine run of some pictures; the authors take 100 steps of 9 prompts.
        nodes: its nodes that the sampler goes through, from 0 to the last, e.g. of `choose_nodes`.
        ridge: weight of staying at the weights of the solver, as a share of the outputs' mean square. 0 = none.
        solver: a name of `festina.samplers.KINDS`.
        order: its order.

    Raises:
        FestinaError: nodes that are not a path through the teacher's, a negative ridge, an unknown solver.
    """
    start = _start(teacher, nodes, ridge, solver, order)
    rows = []
    for place, towards in enumerate(_rows(start)):
        outputs = teacher.outputs[list(nodes[: place + 1])]
        rows.append(_fitted(teacher.samples[0], outputs, teacher.samples[nodes[place + 1]], towards, ridge))
    return _with_rows(start, rows)


def fit_on_policy(
    pipe: Any,
    teacher: Trajectory,
    nodes: Sequence[int],
    draw: Callable[[], object],
    ridge: float = 1e-4,
    solver: str = "data",
    order: int = 2,
) -> SolverTable:
    """OLSS with every step fitted to the outputs that the few-step sampler itself gets, its steps before it fitted.

    It draws the pictures once per step, each time with all steps of the sampler: steps^2 network calls per picture. The
    ridge keeps weights small where outputs are nearly collinear.

    Args:
        pipe: the pipeline that the teacher was recorded of.
        teacher: a fine run of some pictures.
        nodes: its nodes that the sampler goes through, from 0 to the last.
        draw: calls the pipeline with the sampler's number of steps for the teacher's prompts, seeds and guidance.
        ridge: weight of staying at the weights of the solver, as a share of the outputs' mean square. 0 = none.
        solver: a name of `festina.samplers.KINDS`.
        order: its order.

    Raises:
        FestinaError: see `fit_to_teacher` and `festina.samplers.record`; or `draw` starts from other noise than the
            teacher did.
    """
    table = _start(teacher, nodes, ridge, solver, order)
    for place, towards in enumerate(_rows(table)):
        student = record(pipe, table, draw)
        if student.samples.shape[1:] != teacher.samples.shape[1:] or not torch.equal(
            student.samples[0], teacher.samples[0]
        ):
            raise FestinaError(
                "the pictures drawn do not start from the teacher's noise. Draw the same prompts and seeds, in the "
                "same order and size."
            )
        target = teacher.samples[nodes[place + 1]]
        row = _fitted(student.samples[0], student.outputs[: place + 1], target, towards, ridge)
        table = _with_rows(table, [*_rows(table)[:place], row])
    return table


def choose_nodes(teacher: Trajectory, steps: int) -> tuple[int, ...]:
    """OLSS' own path: the nodes for which the largest error of a fitted step is smallest.

    Greedily, each step goes as far as its error allows; the error allowed is bisected. The error of a step is what the
    first sample, the outputs at the nodes before and that at its start leave of the teacher's sample. The path suits
    fitted weights only: other solvers do worse on it than on even steps.

    Args:
        teacher: a fine run of some pictures.
        steps: network calls, from 1 to the teacher's.

    Returns:
        steps + 1 nodes, the first and last of the teacher among them.

    Raises:
        FestinaError: more steps than the teacher has, or none.
    """
    if not 1 <= steps <= teacher.calls:
        raise FestinaError(f"{steps} steps of a teacher with {teacher.calls} were asked for. Use 1 to {teacher.calls}.")
    columns = torch.cat([teacher.samples, teacher.outputs]).double().flatten(1).numpy().T
    # Only products of these vectors matter, and a triangular factor has the same ones in few rows.
    factor = np.asarray(np.linalg.qr(columns, mode="r"))
    samples, outputs = factor[:, : teacher.calls + 1], factor[:, teacher.calls + 1 :]
    low, high = 0.0, float(np.linalg.norm(samples, axis=0).max())
    best = _greedy(samples, outputs, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        path = _greedy(samples, outputs, middle)
        if path is not None and len(path) <= steps + 1:
            best, high = path, middle
        else:
            low = middle
    assert best is not None
    return _filled(best, steps)


def _greedy(samples: Vector, outputs: Vector, allowed: float) -> list[int] | None:
    """Nodes of a path whose every step errs by at most `allowed`; None if there is none."""
    path, last = [0], samples.shape[1] - 1
    while path[-1] < last:
        known, _ = np.linalg.qr(np.column_stack([samples[:, 0], outputs[:, path]]))
        ahead = samples[:, path[-1] + 1 :]
        errors = np.linalg.norm(ahead - known @ (known.T @ ahead), axis=0)
        reached = int(np.argmax([*(errors > allowed), True]))
        if reached == 0:
            return None
        path.append(path[-1] + reached)
    return path


def _filled(path: list[int], steps: int) -> tuple[int, ...]:
    """A path with as many steps as wanted, the longest ones halved."""
    nodes = list(path)
    while len(nodes) < steps + 1:
        longest = int(np.argmax(np.diff(nodes)))
        nodes.insert(longest + 1, (nodes[longest] + nodes[longest + 1]) // 2)
    return tuple(nodes)


def _start(teacher: Trajectory, nodes: Sequence[int], ridge: float, solver: str, order: int) -> SolverTable:
    """The solver on the nodes, as weights: where the fit starts from."""
    rising = all(first < second for first, second in pairwise(nodes))
    if len(nodes) < 2 or nodes[0] != 0 or nodes[-1] != teacher.calls or not rising:
        raise FestinaError(
            f"the nodes {list(nodes)} are no path through a teacher of {teacher.calls} steps. Use rising numbers from "
            f"0 to {teacher.calls}."
        )
    if not ridge >= 0:
        raise FestinaError(f"the ridge is {ridge:g}. Use 0 or more.")
    noises = [teacher.noises[node] for node in nodes]
    return linear_form(
        table_on(teacher.frame, noises[:-1], solver, order, final_noise=noises[-1]),
        teacher.frame,
    )


def _fitted(anchor: torch.Tensor, outputs: torch.Tensor, target: torch.Tensor, towards: Vector, ridge: float) -> Vector:
    """Weights of the first sample and of outputs, oldest first, that make the target best."""
    columns = torch.cat([anchor[None], outputs]).double().flatten(1).numpy().T
    missing = target.double().flatten().numpy() - columns @ towards
    if ridge > 0:
        strength = np.sqrt(ridge * np.square(columns).sum() / len(towards))
        columns = np.vstack([columns, strength * np.eye(len(towards))])
        missing = np.concatenate([missing, np.zeros(len(towards))])
    return np.asarray(towards + np.linalg.lstsq(columns, missing, rcond=None)[0])


def _weights(row: Vector) -> LinearWeights:
    """A step of weights of the first sample and of outputs, oldest first."""
    return LinearWeights(tuple(row[:0:-1].tolist()), anchor=float(row[0]))


def _rows(table: SolverTable) -> list[Vector]:
    """The weights of a table in linear form; inverse of `_weights`."""
    linears = [step.linear for step in table.steps]
    return [np.array([each.anchor, *reversed(each.outputs)]) for each in linears if each is not None]


def _with_rows(table: SolverTable, rows: Sequence[Vector]) -> SolverTable:
    """The table with other weights in its first steps."""
    fitted = [replace(step, linear=_weights(row)) for step, row in zip(table.steps, rows, strict=False)]
    return replace(table, steps=(*fitted, *table.steps[len(rows) :]))
