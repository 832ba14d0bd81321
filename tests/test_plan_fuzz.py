"""Whatever is fed to the readers: a valid plan that round-trips, or FestinaError, and never another exception."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import flux_file, pixart_file
from test_plan import full_plan

from festina.errors import FestinaError
from festina.forecasts import BASES
from festina.formats import from_ecad, to_ecad
from festina.gates import Gate
from festina.plan import ACTIONS, BRANCHES, GATED, PARTIAL, Measurement, Plan, Step
from festina.samplers import LinearWeights, SolverStep, SolverTable
from festina.tokens import CHOICES, Tokens

LIMITED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXTS.filter(bool)
SITES = NAMES.filter(lambda text: ":" not in text and ".." not in text)
BLOCKS = st.builds("{}.{}:residual".format, SITES.filter(lambda text: not text.endswith(".")), st.integers(0, 9))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ODD = st.one_of(
    PLAIN,
    st.text(max_size=5),
    st.sampled_from(["\ud800", "\0", "\ufeff", 10**400, -(10**4000), math.nan, math.inf, 1e308, -0.0, True, [], {}]),
    st.integers(1, 60).map(lambda depth: json.loads("[" * depth + "]" * depth)),
)


GATES = st.builds(
    Gate,
    probe=BLOCKS,
    signal=st.sampled_from(["output", "residual"]),
    reference=st.sampled_from(["computed", "forecast"]),
    threshold=st.floats(0, 9),
    curve=st.lists(st.floats(-9, 9), max_size=5),
    order=st.integers(0, 9),
    longest=st.integers(0, 9),
    decider=st.sampled_from(["call", "first-call", "second-half"]),
)


TOKENS = st.builds(
    Tokens,
    choice=st.sampled_from(CHOICES),
    age=st.floats(0, 9),
    bonus=st.integers(0, 9),
    cell=st.integers(1, 9),
    seed=st.integers(0, 2**40),
)


def steps_of(level, row):
    """Steps with these actions, and shares where some are for some tokens."""
    shares = [st.floats(0, 1) if action == PARTIAL else st.just(0.0) for action in row]
    return st.builds(
        Step,
        st.just(level),
        st.just(row),
        branches=st.sampled_from(BRANCHES),
        injected=st.sampled_from([0.0, 0.5]),
        ahead=st.integers(0, 3),
        shares=st.tuples(*shares) if PARTIAL in row else st.just(()),
        replay=st.none() | st.floats(-2, 2),
        guidance=st.sampled_from([0.0, 0.5, 1.0]),
        model=st.sampled_from(["", "", "small"]) | TEXTS,
    )


@st.composite
def tables(draw, calls):
    """A solver's table of so many network calls, some of its levels repeated, with steps between that make none."""
    solver = st.sampled_from([("data", 3), ("noise", 2), ("adams_bashforth", 4), ("unipc_bh2", 3)])
    made = []
    for place in range(calls):
        name, order = draw(solver)
        linear = draw(
            st.none() | st.builds(LinearWeights, st.tuples(st.floats(-2, 2)), st.sampled_from(["data", "noise"]))
        )
        level = draw(st.sampled_from([10.0, 9.5, 9])) / (place // 2 + 1)
        level = min([level, *(step.noise for step in made[-1:])])
        corrector = draw(st.booleans()) and name == "unipc_bh2"
        made.append(SolverStep(level, name, order, corrector, contrast=draw(st.sampled_from([0, 0.1])), linear=linear))
        if draw(st.integers(0, 4)) == 0:
            going_on = SolverStep(level, call="extrapolate", ratio=draw(st.sampled_from(["released", "noise"])))
            made.append(going_on if len(made) > 2 else SolverStep(level, call="delete"))
    return SolverTable(tuple(made), draw(st.sampled_from([0, 0.01])), start=draw(st.sampled_from(["noise", "given"])))


@st.composite
def plans(draw):
    sites = tuple(draw(st.lists(SITES | BLOCKS, min_size=1, max_size=5, unique=True)))
    levels = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True)), reverse=True)
    gate = draw(st.none() | GATES)
    tokens = draw(st.none() | TOKENS)
    letters = ACTIONS if gate else ACTIONS.replace(GATED, "")
    letters = letters if tokens else letters.replace(PARTIAL, "")
    rows = st.text(letters, min_size=len(sites), max_size=len(sites))
    figures = st.builds(Measurement, TEXTS, st.floats(-1e299, 1e299) | st.integers(-99, 99), TEXTS, TEXTS)
    return Plan(
        draw(NAMES),
        sites,
        tuple(draw(rows.flatmap(lambda row, level=level: steps_of(level, row))) for level in levels),
        draw(NAMES),
        draw(st.dictionaries(TEXTS, PLAIN, max_size=3)),
        draw(TEXTS),
        tuple(draw(st.lists(figures, max_size=2))),
        draw(st.sampled_from(BASES)),
        gate,
        tokens,
        draw(st.none() | tables(len(levels))),
    )


def holds(plan):
    """What every valid plan must stand."""
    assert Plan.from_json(plan.to_json()) == plan
    once = plan.canonical()
    assert once.canonical() == once
    assert once.key() == plan.key()


def plan_or_refusal(reader, content):
    try:
        plan = reader(content)
    except FestinaError:
        return
    holds(plan)


@LIMITED
@given(plans())
def test_any_plan_round_trips(plan):
    text = plan.to_json()
    back = Plan.from_json(text)
    assert back == plan
    assert back.to_json() == text
    assert back.key() == plan.key()


@LIMITED
@given(plans())
def test_any_plan_has_one_canonical_form(plan):
    once = plan.canonical()
    assert once.canonical() == once
    assert once.steps[0].model or set(once.steps[0].actions) == {"C"}
    assert all(set(step.actions) == {"C"} for step in [step for step in once.steps if step.visits][:1])
    for site in plan.sites:
        computed = set(once.computed_steps(site))
        for step, record in enumerate(once.steps):
            action = record.actions[plan.sites.index(site)]
            if action.isdigit():
                assert len([earlier for earlier in computed if earlier < step]) > int(action)


@LIMITED
@given(plans(), st.integers(1, 30))
def test_any_plan_resamples_or_says_why_not(plan, steps):
    try:
        other = plan.resample(steps)
    except FestinaError as error:
        if "hold for their own places only" in str(error):
            kept = [step for step in plan.solver.steps if step.call != "delete"]
            assert any(step.linear is not None or step.call != "network" for step in kept)
            return
        # Only levels too close for floating-point numbers between them have no other grid.
        levels = [step.noise for step in plan.steps]
        closest = min([a - b for a, b in zip(levels, [*levels[1:], 0.0], strict=True) if a > b], default=0.0)
        assert closest < 1e-12
        return
    assert len(other.steps) == steps
    assert {step.actions for step in other.steps} <= {step.actions for step in plan.steps}


@LIMITED
@given(st.text(max_size=200))
def test_random_texts(text):
    plan_or_refusal(Plan.from_json, text)
    plan_or_refusal(from_ecad, text)


@LIMITED
@given(ODD)
def test_random_json(value):
    plan_or_refusal(Plan.from_json, json.dumps(value))
    plan_or_refusal(from_ecad, json.dumps(value))
    plan_or_refusal(from_ecad, json.dumps({"cache_schedule": value}))


@LIMITED
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    plan_or_refusal(Plan.load, path)


def paths_of(value, path=()):
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield from paths_of(child, (*path, key))


@st.composite
def mutated(draw, record):
    """The record with one place replaced by something odd, removed, or joined by something odd."""
    record = json.loads(json.dumps(record))
    *path, last = draw(st.sampled_from(list(paths_of(record))[1:]))
    place = record
    for key in path:
        place = place[key]
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            place[last] = draw(ODD)
        case "remove":
            del place[last]
        case "add" if isinstance(place, dict):
            place[draw(st.text(max_size=5))] = draw(ODD)
        case "add":
            place.insert(draw(st.integers(0, len(place))), draw(ODD))
    return json.dumps(record)


@st.composite
def scrambled(draw, text):
    """The text cut off, with a piece taken out or doubled, or with something strange put in."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    strange = ["", "\0", "\ufeff", "\ud800", "NaN", "1e999", "9" * 5000, "[" * 5000, '"a":1,', "{", "}", "\\ud800"]
    middle = draw(st.sampled_from([*strange, text[start:end] * 2]))
    return text[:start] + middle + draw(st.sampled_from([text[end:], ""]))


@LIMITED
@given(mutated(json.loads(full_plan().to_json())))
def test_mutated_plans(text):
    plan_or_refusal(Plan.from_json, text)


@LIMITED
@given(scrambled(full_plan().to_json()))
def test_scrambled_plans(text):
    plan_or_refusal(Plan.from_json, text)


@LIMITED
@given(scrambled(full_plan().to_json()))
def test_scrambled_plan_files(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    plan_or_refusal(Plan.load, path)


@LIMITED
@given(mutated(pixart_file(2, 2)) | mutated(flux_file(2, 1, 1)))
def test_mutated_ecad_schedules(text):
    plan_or_refusal(from_ecad, text)


@LIMITED
@given(scrambled(json.dumps(pixart_file(2, 1))))
def test_scrambled_ecad_schedules(text):
    plan_or_refusal(from_ecad, text)


@LIMITED
@given(plans())
def test_plans_of_other_models_are_refused_by_ecad(plan):
    with pytest.raises(FestinaError):
        to_ecad(plan)


@LIMITED
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.dictionaries(TEXTS, PLAIN, max_size=3))
def test_any_table_goes_to_ecad_and_back(data, blocks, singles, steps, notes):
    record = data.draw(st.sampled_from([pixart_file(steps, blocks), flux_file(steps, blocks, singles)]))
    empty = from_ecad(json.dumps(record))
    bits = data.draw(st.lists(st.booleans(), min_size=empty.mask().size, max_size=empty.mask().size))
    mask = np.reshape(bits, empty.mask().shape)
    plan = Plan.from_mask(empty.denoiser, empty.sites, mask, settings=notes | {"config": notes})
    back = from_ecad(to_ecad(plan))
    assert (back.denoiser, back.sites, back.settings["config"]) == (plan.denoiser, plan.sites, notes)
    assert np.array_equal(back.mask(), mask)
