"""The text of a plan file: strict JSON, one line per site and step, so that it reads as a table and diffs by step.

Schema 2 added `basis`, `gate` and, in plans that want them, `tokens` and, in their steps, `branches`, `injected`,
`ahead` and `shares`; files of schema 1 are read as plans that have none of them. Schema 3 added `replay`, `guidance`
and the branches `difference` to steps, schema 4 added `solver`, and `model` and the branches `joint` to steps. A plan
that has none of these is written as before, so that its file stays what it was and older versions can read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from festina.forecasts import NEWTON
from festina.gates import Gate
from festina.plan import ALL, Measurement, Plan, Step, want
from festina.records import DIFFERENCE, JOINT
from festina.strict import is_number, read_json
from festina.tokens import Tokens

if TYPE_CHECKING:
    from festina.samplers.table import SolverTable

SCHEMA = 4
"""Latest version of the plan file. All up to it are read; written is the first that has words for all of a plan."""

_USUAL, _THIRD = 2, 3
"""The version that most plans are written in, and the one that added `replay`, `guidance` and `difference`."""


def text_of(plan: Plan) -> str:
    """The plan file's text; equal plans give equal text."""
    record = {
        "festina_plan": _version_of(plan),
        "denoiser": plan.denoiser,
        "sampler": plan.sampler,
        "method": plan.method,
        "settings": plan.settings,
        "basis": plan.basis,
        "gate": None if plan.gate is None else plan.gate.to_record(),
        **({} if plan.tokens is None else {"tokens": plan.tokens.to_record()}),
        **({} if plan.solver is None else {"solver": plan.solver.to_json()}),
        "measured": [{**vars(figure), "value": float(figure.value)} for figure in plan.measured],
        "sites": list(plan.sites),
        "steps": [_step_record(step) for step in plan.steps],
    }
    return "\n".join(_pretty(record)) + "\n"


def _version_of(plan: Plan) -> int:
    """The first schema that has words for all of a plan."""
    if plan.solver is not None or any(step.model or step.branches == JOINT for step in plan.steps):
        return SCHEMA
    third = any(step.replays or step.guidance != 1 or step.branches == DIFFERENCE for step in plan.steps)
    return _THIRD if third else _USUAL


def _pretty(record: Mapping[str, Any]) -> Iterator[str]:
    """One line per key, and one per item of a list."""
    yield "{"
    for number, (name, value) in enumerate(record.items()):
        comma = "," if number < len(record) - 1 else ""
        if isinstance(value, list) and value:
            yield f'  "{name}": ['
            items = [json.dumps(item, ensure_ascii=False) for item in value]
            yield from (f"    {item}," for item in items[:-1])
            yield f"    {items[-1]}"
            yield f"  ]{comma}"
        else:
            yield f'  "{name}": {json.dumps(value, ensure_ascii=False)}{comma}'
    yield "}"


def _step_record(step: Step) -> dict[str, Any]:
    record: dict[str, Any] = {"noise": float(step.noise), "actions": step.actions}
    if step.branches != ALL:
        record["branches"] = step.branches
    if step.injected:
        record["injected"] = float(step.injected)
    if step.ahead:
        record["ahead"] = step.ahead
    if step.shares:
        record["shares"] = [float(share) for share in step.shares]
    if step.replay is not None:
        record["replay"] = float(step.replay)
    if step.guidance != 1:
        record["guidance"] = float(step.guidance)
    if step.model:
        record["model"] = step.model
    return record


def read_text(text: str) -> Plan:
    """Read a plan file's text, strictly.

    Raises:
        FestinaError: not JSON, another schema version, a key too many or too few, or a value of the wrong kind.
    """
    record = read_json(text, "a plan file")
    want(isinstance(record, dict), "a plan file holds one JSON object")
    version = record.get("festina_plan")
    want("festina_plan" in record, "no 'festina_plan' key: this is not a plan file (see `festina plan convert`)")
    found = f"plan schema {version!r:.40}"
    want(type(version) is int and 1 <= version <= SCHEMA, f"{found}; this Festina reads schemas 1 to {SCHEMA}")
    wanted = {"festina_plan", "denoiser", "sampler", "method", "settings", "measured", "sites", "steps"}
    record = {"tokens": None} | record if version >= _USUAL else record
    record = {"solver": None} | record if version >= SCHEMA else record
    wanted |= {"basis", "gate", "tokens"} if version >= _USUAL else set()
    _keys(record, wanted | ({"solver"} if version >= SCHEMA else set()), "the plan")
    want(isinstance(record["settings"], dict), "'settings' is an object")
    sites, steps, measured = record["sites"], record["steps"], record["measured"]
    for name, items in (("sites", sites), ("steps", steps), ("measured", measured)):
        want(isinstance(items, list), f"{name!r} is a list")
    return Plan(
        denoiser=record["denoiser"],
        sites=tuple(sites),
        steps=tuple(_read_step(number, step, version) for number, step in enumerate(steps)),
        method=record["method"],
        settings=record["settings"],
        sampler=record["sampler"],
        measured=tuple(_read_measurement(figure) for figure in measured),
        basis=record.get("basis", NEWTON),
        gate=None if record.get("gate") is None else Gate.from_record(record["gate"]),
        tokens=None if record.get("tokens") is None else Tokens.from_record(record["tokens"]),
        solver=None if record.get("solver") is None else _read_solver(record["solver"]),
    )


def _read_solver(record: Any) -> SolverTable:
    # It wants torch, and most plans have none.
    from festina.samplers.table import SolverTable

    return SolverTable.from_json(record)


def _read_step(number: int, record: Any, version: int) -> Step:
    want(isinstance(record, dict), f"step {number} is an object")
    whole = {"branches": ALL, "injected": 0.0, "ahead": 0, "shares": []} | record
    known = {"noise", "actions", "branches", "injected", "ahead", "shares"}
    known |= {"replay", "guidance"} & set(record) if version >= _THIRD else set()
    known |= {"model"} & set(record) if version >= SCHEMA else set()
    _keys(whole, known, f"step {number}")
    for factor in ("replay", "guidance"):
        want(is_number(whole.get(factor, 0.0)), f"{factor!r} of step {number} is a number")
    want(is_number(record["noise"]), f"'noise' of step {number} is a number")
    want(isinstance(record["actions"], str), f"'actions' of step {number} is a text")
    want(isinstance(whole["branches"], str), f"'branches' of step {number} is a text")
    known_then = version >= {DIFFERENCE: _THIRD, JOINT: SCHEMA}.get(whole["branches"], 1)
    want(known_then, f"step {number} has branches {whole['branches']!r:.40}, which schema {version} does not know")
    want(is_number(whole["injected"]), f"'injected' of step {number} is a number")
    want(type(whole["ahead"]) is int, f"'ahead' of step {number} is a whole number")
    numbers = isinstance(whole["shares"], list) and all(is_number(share) for share in whole["shares"])
    want(numbers, f"'shares' of step {number} is a list of numbers")
    return Step(
        noise=float(record["noise"]),
        actions=record["actions"],
        branches=whole["branches"],
        injected=float(whole["injected"]),
        ahead=whole["ahead"],
        shares=tuple(float(share) for share in whole["shares"]),
        replay=float(whole["replay"]) if "replay" in whole else None,
        guidance=float(whole.get("guidance", 1.0)),
        model=whole.get("model", ""),
    )


def _read_measurement(record: Any) -> Measurement:
    want(isinstance(record, dict), "a measurement is an object")
    _keys(record, {"name", "value", "unit", "conditions"}, "a measurement")
    return Measurement(record["name"], record["value"], record["unit"], record["conditions"])


def _keys(record: Mapping[str, Any], wanted: set[str], where: str) -> None:
    missing, unknown = wanted - set(record), set(record) - wanted
    want(not missing, f"{where} lacks {sorted(missing)}")
    want(not unknown, f"{where} has unknown keys {sorted(unknown)[:5]}")
