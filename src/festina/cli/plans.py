"""`festina plan show | check | convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from festina.cli.pictures import load_plan
from festina.cli.stand_ins import StandIns, StatisticsFile, load_stand_ins, stand_ins
from festina.errors import FestinaError
from festina.plan import ALL, COMPUTE, FORECASTS, GATED, PARTIAL, REUSE, SKIP, Plan
from festina.strict import write_whole

if TYPE_CHECKING:
    from festina.samplers.table import SolverTable

app = typer.Typer(help="Look at, check and convert plan files.", no_args_is_help=True)

PlanFile = Annotated[
    Path,
    typer.Argument(help="A plan file, as `festina search` and `festina front --save` write it, or a plan that ships."),
]

_STYLES = {COMPUTE: "on dark_orange3", REUSE: "on grey23", SKIP: "on grey3"}
_MARKS = {COMPUTE: "#", REUSE: ".", SKIP: " ", GATED: "?", PARTIAL: "+"}


class Target(StrEnum):
    """What `plan convert` writes."""

    FESTINA = "festina"
    ECAD = "ecad"
    MASK = "mask"


_STARTS = {
    "gaussian": "noise that statistics of the model carry to its first level (--statistics)",
    "given": "latents that the pipeline's call is given",
}
"""What a sampler begins with that does not begin with noise."""


@app.command("show")
def show(file: PlanFile) -> None:
    """Show a plan: what made it, what was measured, and its schedule as a map of steps and sites."""
    plan = load_plan(str(file))
    console = Console()
    title = f"{plan.method} for {plan.denoiser}: {len(plan.steps)} steps, {len(plan.sites)} sites"
    console.print(title, style="bold", highlight=False, markup=False)
    if plan.sampler:
        console.print(f"  made with {plan.sampler}", highlight=False, markup=False)
    if plan.solver is not None and plan.solver.start != "noise":
        console.print(f"  begins with {_STARTS[plan.solver.start]}", highlight=False, markup=False)
    for name, value in plan.settings.items():
        console.print(f"  {name} = {value}", highlight=False, markup=False)
    for figure in plan.measured:
        console.print(
            f"  {figure.name}: {figure.value:.4g} {figure.unit} ({figure.conditions})", highlight=False, markup=False
        )
    console.print(f"[dim]Canonical key {plan.key()[:16]}[/]")
    canonical = plan.canonical()
    colour = console.is_terminal
    solved = [""] * len(canonical.steps) if canonical.solver is None else _solved(canonical.solver)
    for index, step in enumerate(canonical.steps):
        line = Text(f"{index:3d} {step.noise:5.3f} ")
        if not step.visits:
            replays = "" if step.replay is None else f"the last answer, times {step.replay:.4g}"
            line.append((replays or f"by the model {step.model!r}") + solved[index])
            console.print(line, no_wrap=True, crop=False, soft_wrap=True)
            continue
        for action in step.actions:
            mark = action if action in FORECASTS else _MARKS[action]
            line.append(mark, style=_STYLES.get(action, "on blue") if colour else "")
        line.append(f" {step.actions.count(COMPUTE)}/{len(step.actions)}")
        if step.branches != ALL:
            line.append(f" {step.branches}")
        if step.guidance != 1:
            line.append(f" guidance times {step.guidance:.4g}")
        line.append(solved[index])
        console.print(line, no_wrap=True, crop=False, soft_wrap=True)
    marks = "# compute, + for some tokens, . reuse, 1-9 forecast, ? gate, blank skip"
    console.print(f"One line per step, one mark per site: {marks}.", highlight=False)


def _solved(table: SolverTable) -> list[str]:
    """What the solver does in each step, in words."""
    words: list[str] = []
    for step in table.steps:
        if step.call == "extrapolate":
            words[-1] += ", then an extrapolation"
            continue
        kind = "by its weights" if step.linear is not None else f"{step.solver} {step.order}"
        words.append(f"  {kind} at {step.noise:.4g}{' with corrector' if step.corrector else ''}")
    return words


@app.command("check")
def check(
    file: PlanFile,
    model: Annotated[str | None, typer.Option(help="Also check that the plan fits this model.")] = None,
    models: StandIns = None,
    statistics: StatisticsFile = None,
    steps: Annotated[int | None, typer.Option(help="Also check that the plan has so many steps.", min=1)] = None,
) -> None:
    """Check that a file is a valid plan, and that it fits a model."""
    plan = load_plan(str(file))
    if steps is not None and steps != len(plan.steps):
        raise FestinaError(
            f"{file} has {len(plan.steps)} steps, wanted {steps}; `festina plan convert {file} --steps {steps} "
            "--out NEW` resamples it."
        )
    if model is None and (models or statistics):
        raise FestinaError("--with and --statistics need a --model that the plan is to fit.")
    if model is not None:
        from festina.executor import accelerate
        from festina.zoo import load

        sources = stand_ins(models, plan)
        with accelerate(load(model), plan, load_stand_ins(sources), statistics):
            pass
    fits = f", fits {model}" if model else ""
    print(f"{file}: valid, {len(plan.steps)} steps, {len(plan.sites)} sites{fits}")


@app.command("convert")
def convert(
    file: Annotated[
        Path, typer.Argument(help="A plan file, one that ships, or an ECAD schedule (recognised by its keys).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")],
    to: Annotated[
        Target, typer.Option(help="festina: a plan file; ecad: ECAD's schedule JSON; mask: one 0/1 per step.")
    ] = Target.FESTINA,
    steps: Annotated[int | None, typer.Option(help="Resample to this number of steps first.", min=1)] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="For a mask: a step counts as computing if at least this share of its sites does.", min=0, max=1
        ),
    ] = None,
) -> None:
    """Convert plan files and ECAD's schedules into each other and into step masks, or to another number of steps."""
    from festina import formats

    plan = _load_any(file)
    if share is not None and to is not Target.MASK:
        raise FestinaError("--share only means something with --to mask.")
    if steps is not None:
        plan = plan.resample(steps)
    if to is Target.FESTINA:
        plan.save(out)
    elif to is Target.ECAD:
        write_whole(out, formats.to_ecad(plan))
    else:
        write_whole(out, f"{formats.to_step_mask(plan, share)}\n")
    print(f"wrote {out}")


def _load_any(file: Path) -> Plan:
    from festina import formats

    try:
        return load_plan(str(file))
    except FestinaError:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if '"cache_schedule"' not in text:
            raise
    return formats.from_ecad(text)
