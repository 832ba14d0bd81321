"""ECAD's schedule files: what is kept, what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel

from festina.errors import FestinaError
from festina.formats import from_ecad, to_ecad
from festina.plan import Plan, Step
from festina.sites import component_sites

PIXART, FLUX = ("attn1", "attn2", "ff"), ("full_attn", "full_ff", "full_ff_context")
SINGLE = ("single_attn", "single_proj_mlp", "single_proj_out")


def schedule_of(steps, cells, seed=0):
    """Random booleans for blocks given as {block: components}."""
    bits = np.random.default_rng(seed)
    return {
        f"{step:03d}": {
            block: {name: bool(bits.integers(2)) for name in components} for block, components in cells.items()
        }
        for step in range(steps)
    }


def pixart_file(steps=4, blocks=3):
    body = {
        "num_blocks": blocks,
        "num_inference_steps": steps,
        "name": "a schedule",
        "attributes": {"num_affected_steps": 1},
        "schedule": schedule_of(steps, {str(block): PIXART for block in range(blocks)}),
    }
    return {"cache_schedule": body, "config": {"height": 256}, "metrics": {"total_macs": 5}}


def flux_file(steps=4, blocks=2, singles=3):
    cells = {str(block): FLUX for block in range(blocks)} | {f"single_{block}": SINGLE for block in range(singles)}
    body = {
        "num_blocks": blocks,
        "num_single_blocks": singles,
        "num_inference_steps": steps,
        "name": "a schedule",
        "attributes": {},
        "schedule": schedule_of(steps, cells),
    }
    return {"cache_schedule": body, "config": {}, "metrics": {}}


def read(record, denoiser=None):
    return from_ecad(json.dumps(record), denoiser)


def test_pixart_cell_by_cell():
    record = pixart_file()
    plan = read(record)
    assert (plan.denoiser, len(plan.steps), plan.method) == ("PixArtTransformer2DModel", 4, "ecad")
    assert plan.settings == {"name": "a schedule", "config": {"height": 256}}
    for step, row in enumerate(plan.mask()):
        for site, bit in zip(plan.sites, row, strict=True):
            _, block, component = site.split(".")
            assert record["cache_schedule"]["schedule"][f"{step:03d}"][block][component] == bit


def test_flux_cell_by_cell():
    record = flux_file()
    plan = read(record)
    names = {
        ("transformer_blocks", "attn"): "full_attn",
        ("transformer_blocks", "ff"): "full_ff",
        ("transformer_blocks", "ff_context"): "full_ff_context",
        ("single_transformer_blocks", "attn"): "single_attn",
        ("single_transformer_blocks", "proj_mlp"): "single_proj_mlp",
        ("single_transformer_blocks", "proj_out"): "single_proj_out",
    }
    assert (plan.denoiser, plan.mask().shape) == ("FluxTransformer2DModel", (4, 15))
    for step, row in enumerate(plan.mask()):
        for site, bit in zip(plan.sites, row, strict=True):
            stack, block, component = site.split(".")
            prefix = "single_" if stack.startswith("single") else ""
            cell = record["cache_schedule"]["schedule"][f"{step:03d}"][f"{prefix}{block}"]
            assert cell[names[stack, component]] == bit


@pytest.mark.parametrize(
    ("model", "record", "genes"),
    [(PixArtTransformer2DModel, pixart_file(20, 28), 1680), (FluxTransformer2DModel, flux_file(20, 19, 38), 3420)],
)
def test_sites_are_those_of_the_real_models(model, record, genes):
    with torch.device("meta"):
        denoiser = model()
    plan = read(record)
    assert set(plan.sites) == {site.name for site in component_sites(denoiser)}
    assert plan.mask().size == genes


@pytest.mark.parametrize("record", [pixart_file(), flux_file(), pixart_file(1, 1), flux_file(12, 1, 1)])
def test_the_round_trip_keeps_the_schedule(record):
    plan = read(record)
    back = json.loads(to_ecad(plan))
    body = record["cache_schedule"]
    assert back["cache_schedule"]["schedule"] == body["schedule"]
    assert back["metrics"] == {}
    assert back["config"] == record["config"]
    assert {key: back["cache_schedule"][key] for key in body if key != "attributes"} == {
        key: body[key] for key in body if key != "attributes"
    }
    assert read(back) == plan


def test_written_counts():
    full = {"full_attn": True, "full_ff": True, "full_ff_context": True}
    single = {"single_attn": True, "single_proj_mlp": True, "single_proj_out": True}
    rows = [{"0": dict(full), "1": dict(full), "single_0": dict(single)} for _ in range(3)]
    rows[1]["0"]["full_ff"] = rows[2]["0"]["full_ff"] = rows[2]["single_0"]["single_attn"] = False
    record = flux_file(3, 2, 1)
    record["cache_schedule"]["schedule"] = {f"{step:03d}": row for step, row in enumerate(rows)}
    assert json.loads(to_ecad(read(record)))["cache_schedule"]["attributes"] == {
        "num_affected_steps": 2,
        "num_affected_blocks": 1,
        "num_affected_blocks_single": 1,
        "total_num_affected_blocks": 3,
    }
    pixart = json.loads(to_ecad(read(pixart_file())))["cache_schedule"]["attributes"]
    assert set(pixart) == {"num_affected_steps", "num_affected_blocks", "total_num_affected_blocks"}


def test_config_and_metrics_may_be_absent():
    record = {"cache_schedule": pixart_file()["cache_schedule"]}
    assert read(record).settings["config"] == {}


def test_the_denoiser_asked_for():
    assert read(flux_file(), "FluxTransformer2DModel") == read(flux_file())
    with pytest.raises(FestinaError, match="for PixArtTransformer2DModel; wanted one for FluxTransformer2DModel"):
        read(pixart_file(), "FluxTransformer2DModel")


def test_custom_functions_are_refused():
    record = pixart_file()
    record["cache_schedule"]["schedule"]["002"]["1"]["custom_compute_attn"] = {"name": "gate", "kwargs": {}}
    with pytest.raises(FestinaError, match=r"block 1 of step 2 .*'custom_compute_attn' \(TGATE\)"):
        read(record)


def changed(record, path, value):
    """The record with the value at a path replaced, or the key removed if the value is `...`."""
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


BODY = ("cache_schedule",)
CELL = (*BODY, "schedule", "001", "1")
FLAWS = [
    (BODY, ..., "no 'cache_schedule'"),
    (BODY, [], "'cache_schedule' is an object"),
    (("extra",), 1, "the file has unknown keys"),
    (("config",), [], "'config' is an object"),
    (("metrics",), 1, "'metrics' is an object"),
    *(((*BODY, key), ..., f"lacks ['{key}']") for key in pixart_file()["cache_schedule"]),
    ((*BODY, "extra"), 1, "unknown keys ['extra']"),
    ((*BODY, "name"), 1, "'name' is a text"),
    ((*BODY, "name"), "\ud800", "not Unicode"),
    ((*BODY, "attributes"), [], "'attributes'"),
    ((*BODY, "attributes"), {"num_affected_steps": 1.5}, "'attributes'"),
    *(((*BODY, "num_blocks"), value, "'num_blocks' is a number") for value in (0, -3, True, 3.0, "3", None, 10**30)),
    *(((*BODY, "num_inference_steps"), value, "'num_inference_steps' is") for value in (0, True, 4.0, 10**9)),
    ((*BODY, "num_blocks"), 2, "3 blocks, the header says 2"),
    ((*BODY, "num_blocks"), 20_000, "the header says 20000"),
    ((*BODY, "num_inference_steps"), 10_000, "'num_inference_steps' says 10000"),
    ((*BODY, "schedule"), [], "'schedule' is an object"),
    ((*BODY, "schedule", "001"), ..., "'schedule' has 3 steps"),
    ((*BODY, "schedule", "004"), {}, "'schedule' has 5 steps"),
    ((*BODY, "schedule", "001"), [], "an object for each step, as '001'"),
    (CELL, ..., "2 blocks"),
    (CELL, [], "block 1 of step 1 is an object"),
    ((*CELL, "ff"), ..., "lacks ['ff']"),
    ((*CELL, "ff"), 1, "true or false"),
    ((*CELL, "ff"), None, "true or false"),
    ((*CELL, "full_ff"), True, "unknown keys ['full_ff']"),
]


@pytest.mark.parametrize(("path", "value", "message"), FLAWS)
def test_flaws_are_named(path, value, message):
    with pytest.raises(FestinaError) as refusal:
        read(changed(pixart_file(), path, value))
    assert message in str(refusal.value)


def test_misnamed_steps_and_blocks_are_refused():
    for wrong in ("1", "0001", "-01"):
        record = pixart_file()
        rows = record["cache_schedule"]["schedule"]
        rows[wrong] = rows.pop("001")
        with pytest.raises(FestinaError, match="as '001'"):
            read(record)
    record = flux_file()
    row = record["cache_schedule"]["schedule"]["000"]
    row["2"] = row.pop("single_2")
    with pytest.raises(FestinaError, match="block single_2 of step 0"):
        read(record)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"cache_schedule": NaN}', "\ufeff{}", '{"a": 1, "a": 2}'])
def test_other_texts_are_refused(text):
    with pytest.raises(FestinaError, match="not an ECAD schedule"):
        from_ecad(text)


def test_a_file_too_large_is_refused():
    with pytest.raises(FestinaError, match="larger than"):
        from_ecad(" " * (16 * 2**20 + 1))


@pytest.mark.parametrize("action", ["S", "1"])
def test_other_actions_cannot_go_to_ecad(action):
    plan = read(pixart_file(2, 1))
    steps = (plan.steps[0], Step(0.5, f"C{action}C"))
    with pytest.raises(FestinaError, match=f"compute and reuse only.*{action}"):
        to_ecad(Plan(plan.denoiser, plan.sites, steps))


def test_plans_ecad_has_no_words_for():
    def plan_of(denoiser, *sites):
        return Plan.computing_all(denoiser, sites, 2)

    name, block = "PixArtTransformer2DModel", "transformer_blocks.0"
    whole = [f"{block}.{component}" for component in PIXART]
    with pytest.raises(FestinaError, match="no schedules for DiTTransformer2DModel"):
        to_ecad(plan_of("DiTTransformer2DModel", f"{block}.attn1", f"{block}.ff"))
    with pytest.raises(FestinaError, match=r"no site 'transformer_blocks\.0\.ff'"):
        to_ecad(plan_of(name, *whole[:2]))
    with pytest.raises(FestinaError, match=r"a site 'transformer_blocks\.0:residual'"):
        to_ecad(plan_of(name, *whole, f"{block}:residual"))
    with pytest.raises(FestinaError, match="no site"):
        to_ecad(plan_of(name, *whole, f"transformer_blocks.{'9' * 400}.ff"))


def test_the_order_of_sites_does_not_matter_to_ecad():
    plan = read(pixart_file())
    turned = Plan.from_mask(plan.denoiser, plan.sites[::-1], plan.mask()[:, ::-1])
    assert (
        json.loads(to_ecad(turned))["cache_schedule"]["schedule"]
        == (json.loads(to_ecad(plan))["cache_schedule"]["schedule"])
    )
