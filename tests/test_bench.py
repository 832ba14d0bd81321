"""The benchmark programs, tiny: what they count, whether what they time is exact, and what they write. No seconds."""

import json
import math
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import large
import models
import overhead
import search_rate
import skipped
import table
import timing

from festina import FestinaError
from festina.cost import mac_table, plan_macs
from festina.latency import probe_plans
from festina.methods import fora
from festina.report import FrontPage, figures
from festina.zoo import load

BLOCKS, WIDTH, TOKENS, TEXT, ROWS = 8, 192, 64, 20, 2
"""The denoiser of scenes, called for one picture under guidance."""


@pytest.fixture(scope="module")
def scenes():
    return models.around_pixart("scenes", load("scenes").transformer, TEXT, ROWS)


@pytest.fixture(scope="module")
def table_plans(tmp_path_factory, scenes):
    """Two plans of 6 steps as files: one is FORA 2, the other the dearest random plan."""
    folder = tmp_path_factory.mktemp("plans")
    fora(scenes.denoiser, 6, 2).save(folder / "half.json")
    models.random_plan(scenes.denoiser, 6, 0.9, seed=1).save(folder / "most.json")
    return [str(folder / "half.json"), str(folder / "most.json")]


def record(path, found):
    """The saved record, after a look at what every record has."""
    saved = json.loads(path.read_text())
    assert set(saved) == {"benchmark", "settings", "hardware", "libraries", "figures"}
    assert {"festina", "torch", "diffusers", "python"} <= set(saved["libraries"])
    assert saved["hardware"]["torch_threads"] == torch.get_num_threads()
    assert "out" not in saved["settings"]
    assert saved["figures"] == json.loads(json.dumps(found))
    return saved


def test_variants_take_turns_and_the_first_round_is_not_counted():
    order = []

    def variant(name):
        order.append(name)
        return float(len(order))

    seconds = timing.interleaved({"a": lambda: variant("a"), "b": lambda: variant("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_ratio_is_the_median_of_those_within_rounds():
    assert timing.ratio([1.0, 10.0, 6.0], [1.0, 5.0, 1.0]) == 2.0


def test_work_is_waited_for_on_both_sides():
    order = []
    spent = timing.seconds_of(lambda: order.append("work"), lambda: order.append("wait"))
    assert order == ["wait", "work", "wait"]
    assert spent > 0


def test_a_mistake_is_one_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["large.py"])
    with pytest.raises(SystemExit) as stop:
        timing.run_program(large.main)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: torch finds no CUDA device")
    assert printed.err.count("\n") == 1
    with pytest.raises(FestinaError, match="--device cuda"):
        search_rate.main(["--device", "cuda"])


def test_counts_are_whole_numbers_above_their_least(capsys):
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(SystemExit):
            overhead.main(["--rounds", wrong])
        assert "wanted a whole number of 1 or more" in capsys.readouterr().err


def test_overhead_times_runs_that_are_exact_and_wrapped_as_it_says(tmp_path, capsys):
    found = overhead.main(["--rounds", "1", "--calls", "2", "--blocks", "3", "--out", str(tmp_path / "overhead.json")])
    assert {name: part["sites"] for name, part in found.items()} == {"scenes": 24, "PixArt, 3 blocks, 64 wide": 9}
    for part in found.values():
        assert part["wrapped_sites"] == part["sites"]
        assert part["bit_identical"] == {overhead.ATTACHED: True, overhead.WRAPPED: True}
        assert part["served"] == {overhead.ATTACHED: 0, overhead.WRAPPED: 0}
        assert {len(spent) for spent in part["seconds"].values()} == {1}
        for way, times in part["ratio"].items():
            assert times == pytest.approx(part["seconds"][way][0] / part["seconds"][overhead.UNTOUCHED][0])
    assert record(tmp_path / "overhead.json", found)["settings"] == {"rounds": 1, "calls": 2, "blocks": 3}
    assert capsys.readouterr().out.count("\n| ") == 3


def test_overhead_has_a_denoiser_of_the_same_size_where_scenes_is_missing(monkeypatch, scenes):
    def missing(name):
        raise FestinaError("no such model.")

    monkeypatch.setattr(overhead, "load", missing)
    small = overhead.shipped_or_small()
    # Its text is projected from another width; the blocks are the same.
    sizes = [model.traced.within["transformer_blocks.0"] for model in (small, scenes)]
    assert sizes[0] == sizes[1]
    assert len(small.sites) == len(scenes.sites)


def test_skipped_counts_and_prices_what_it_skips(tmp_path, scenes):
    found = skipped.main(["--rounds", "1", "--steps", "6", "--pictures", "1", "--out", str(tmp_path / "skipped.json")])
    square, image = WIDTH**2, ROWS * TOKENS
    per_site = {
        "attn1": 4 * image * square + 2 * image * TOKENS * WIDTH,
        "attn2": 2 * (image + ROWS * TEXT) * square + 2 * image * TEXT * WIDTH,
        "ff": 8 * image * square,
    }
    groups = found["groups"]
    assert {name: part["macs"] for name, part in groups.items()} == {
        f"transformer_blocks.{kind}": BLOCKS * macs for kind, macs in per_site.items()
    }
    fixed = mac_table(scenes.denoiser, scenes.traced).fixed.total
    assert found["macs_per_step"] == fixed + BLOCKS * sum(per_site.values())
    assert math.fsum(part["share_of_macs"] for part in groups.values()) == pytest.approx(
        1 - fixed / found["macs_per_step"]
    )
    everything = found["seconds"][skipped.EVERYTHING][0]
    for name, part in groups.items():
        assert (part["sites"], part["skips"]) == (BLOCKS, 3 * BLOCKS)
        saved = everything - found["seconds"][f"{name} in every second step"][0]
        assert part["saved_seconds_per_skip"] == pytest.approx(saved / (3 * BLOCKS))
    record(tmp_path / "skipped.json", found)


def test_skipped_judges_the_latency_model_on_plans_it_was_not_fitted_on(scenes):
    unseen = skipped.unseen_plans(scenes, 6)
    probes = probe_plans("PixArtTransformer2DModel", scenes.sites, 6)
    alternating = skipped.alternating_plans(scenes, 6).values()
    assert not {plan.key() for plan in unseen.values()} & {plan.key() for plan in (*probes, *alternating)}
    found = skipped.measure(scenes, 6, 1)
    fit = found["latency_model"]
    # FORA 3 computes every site in two of six steps.
    prices = [part["model_seconds"] * BLOCKS * 2 for part in found["groups"].values()]
    assert fit["predicted"]["FORA 3"] == pytest.approx(6 * fit["fixed_per_step"] + sum(prices))
    errors = [abs(fit["predicted"][name] / fit["measured"][name] - 1) for name in unseen]
    assert len(errors) == 5
    assert fit["largest_error"] == max(errors)
    assert fit["mean_error"] == pytest.approx(sum(errors) / 5)
    assert skipped.table_of_fit(found).count("\n") == 7


def test_search_rate_evaluates_a_new_plan_every_round(tmp_path):
    found = search_rate.main(
        ["--images", "2", "--steps", "3", "--rounds", "2", "--batch", "2", "--out", str(tmp_path / "rate.json")]
    )
    untouched, plans = search_rate.UNCACHED, search_rate.CACHED
    assert found["images"] == 2
    assert found["candidates"] == {untouched: 2, plans: 2}
    assert found["different_plans"] == 2
    assert len(set(found["macs"][untouched])) == 1
    assert all(0 < macs < found["macs"][untouched][0] for macs in found["macs"][plans])
    for name, rate in found["candidates_per_minute"].items():
        assert rate == pytest.approx(60 / median(found["seconds"][name]))
        # Judging comes on top of what the pipeline takes: nothing was looked up in an archive.
        assert all(
            whole > part > 0
            for whole, part in zip(found["seconds"][name], found["pipeline_seconds"][name], strict=True)
        )
    record(tmp_path / "rate.json", found)


def test_table_measures_the_plans_beside_what_else_one_could_do(tmp_path, capsys, table_plans):
    out, picture = tmp_path / "page.json", tmp_path / "plot.png"
    options = ["--held-out-images", "3", "--rounds", "1", "--out", str(out), "--png", str(picture)]
    found = table.main(["scenes", "--plans", *table_plans, *options])
    page = found["page"]
    assert FrontPage.load(out) == page
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = {point.name: point for point in page.points}
    assert [(point.name, point.kind) for point in page.points] == [
        ("uncached", "uncached"),
        ("4 steps", "fewer-steps"),
        *((f"FORA {interval}", "fora") for interval in (2, 3, 4, 5)),
        ("half", "front"),
        ("most", "front"),
    ]
    assert 6 * points["4 steps"].macs == 4 * points["uncached"].macs
    same = [(points[name].macs, points[name].held_bytes, points[name].reward) for name in ("half", "FORA 2")]
    assert same[0] == same[1]
    assert points["half"].macs < points["most"].macs < points["uncached"].macs
    assert all(point.frechet is not None and point.seconds is not None for point in page.points)
    assert len(page.prompts) == len(points["half"].pictures) == 3
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 1 + len(points)
    assert [sentence.partition(",")[0] for sentence in found["same_seconds"]] == ["half", "most"]
    assert all(f"- {sentence}\n" in printed for sentence in found["same_seconds"])


def test_table_says_which_fewer_steps_take_the_same_seconds(table_plans):
    plan = table.load_plan(table_plans[0])

    def point(name, kind, steps, seconds, reward, by=None):
        return table.Point(name, kind, steps, 1000, seconds, 1.0, reward, reward, reward, None, None, 0, by)

    rest = (point("4 steps", "fewer-steps", 4, 4.0, 0.4), point("uncached", "uncached", 6, 6.0, 0.6))
    told = {}
    for seconds in (5.0, 4.0, 3.0):
        plan_point = point("half", "front", 6, seconds, 0.5, plan)
        told[seconds] = table.same_seconds(FrontPage("t", "m", (), (*rest, plan_point), "h", "s"), plan_point)
    assert "sampler with 4 to 6 steps reaches 0.500 in the same seconds" in told[5.0]
    assert "sampler with 4 steps reaches 0.400 in the same seconds" in told[4.0]
    assert "no measured run of the untouched sampler needs so few seconds" in told[3.0]
    assert figures.seconds_text(5.0) in told[5.0]


def test_table_refuses_plans_it_cannot_compare(tmp_path, scenes, table_plans):
    fora(scenes.denoiser, 5, 2).save(tmp_path / "other.json")
    with pytest.raises(FestinaError, match="5 and 6 steps"):
        table.main(["scenes", "--plans", table_plans[0], str(tmp_path / "other.json")])
    with pytest.raises(FestinaError, match="same file name"):
        table.main(["scenes", "--plans", table_plans[0], table_plans[0]])
    with pytest.raises(FestinaError, match="no shipped plan 'scenes/quickest'"):
        table.main(["scenes", "--plans", "scenes/quickest"])


def test_large_is_exact_and_holds_what_was_predicted(tmp_path, capsys):
    found = large.main(["--tiny", "--steps", "6", "--rounds", "1", "--out", str(tmp_path / "large.json")])
    assert {name: part["exactness"]["sites"] for name, part in found.items()} == {"PixArt-alpha": 9, "FLUX.1-dev": 12}
    for name, part in found.items():
        exact, model = part["exactness"], large.tiny(name, 1)
        assert all(holds for holds in exact.values() if isinstance(holds, bool))
        assert exact["peak_bytes_measured"] == exact["peak_bytes_predicted"] > 0
        assert exact["computed"] == exact["computed_by_plan"] < exact["sites"] * large.EXACTNESS_STEPS
        assert list(part["speed"]) == ["uncached", "FORA 2", "FORA 3", "FORA 4", "FORA 5"]
        prices = mac_table(model.denoiser, model.traced)
        for label, run in part["speed"].items():
            computed = {"uncached": 6, "FORA 2": 3}.get(label, 2)
            sites = prices.full.total - prices.fixed.total
            assert run["macs"] == 6 * prices.fixed.total + computed * sites
            assert run["macs_uncached"] == 6 * prices.full.total
            assert run["peak_bytes_predicted"] == run["peak_bytes_measured"]
            assert len(run["seconds"]) == 1
    record(tmp_path / "large.json", found)
    assert "| FLUX.1-dev | 12 | same bits | same bits | yes |" in capsys.readouterr().out


def test_large_fails_if_a_run_is_not_exact_but_keeps_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "by_hooks", lambda model, plan: models.sample(model, len(plan.steps)))
    out = tmp_path / "large.json"
    with pytest.raises(FestinaError, match=r"not exact: PixArt-alpha: schedule_equals_reference\.$"):
        large.main(["--tiny", "--models", "PixArt-alpha", "--steps", "2", "--rounds", "1", "--out", str(out)])
    found = json.loads(out.read_text())["figures"]["PixArt-alpha"]
    assert found["exactness"]["all_compute_bit_identical"]
    assert not found["exactness"]["schedule_equals_reference"]


def test_full_size_denoisers_cost_what_ecad_recorded():
    """ECAD's counts for 20 steps (arXiv 2506.15682, released schedules), no attention products; FLUX at batch 2."""
    recorded = {
        "PixArt-alpha": (1, 5_713_796_136_960, 2.8718825472e12),
        "FLUX.1-dev": (2, 198_691_510_026_240, 99.54218999808e12),
    }
    assert set(recorded) == set(large.ECAD_RATIOS)
    for name, (pictures, uncached, halved) in recorded.items():
        model = large.full_size(name, pictures, torch.device("meta"))
        assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.bfloat16}
        assert {weight.device.type for weight in model.denoiser.parameters()} == {"meta"}
        prices = mac_table(model.denoiser, model.traced)
        assert 20 * prices.full.linear == uncached
        assert plan_macs(fora(model.denoiser, 20, 2), prices).linear == halved
    assert torch.get_default_dtype() == torch.float32
