"""What is made of figures and seconds: the sampler with fewer steps at the same seconds, the front, data and tables."""

import io
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from festina import FestinaError, Plan
from festina.benchmark import record
from festina.benchmark.figures import Figures, psnr_of
from festina.benchmark.folder import Folder, slug
from festina.benchmark.page import page_html
from festina.benchmark.results import Benchmark, non_dominated, results, rival
from festina.benchmark.variants import Alike, Failed, Variant, lineup
from festina.search.front import confidence_interval

SITES = ("transformer_blocks.0.ff", "transformer_blocks.1.ff")
NASTY = "own <i>\"$plan\"</i> & | 'x'"
SCORES = (0.2, 0.5, 0.8, 0.9)


def plan(every: int) -> Plan:
    return Plan.from_mask("PixArtTransformer2DModel", SITES, np.arange(6)[:, None].repeat(2, 1) % every == 0)


def variant(name, kind="method", group="fora", steps=6, of=None) -> Variant:
    return Variant(name, kind, group, steps, {"interval": 2}, of)


def figures_of(which: Variant, shift: float, error: float, **changes) -> Figures:
    scores = tuple(score + shift for score in SCORES)
    made = Figures(which.name, which.key, which.steps, which.plan, scores, 1000, 2048, 1.5, error, 0.9, None)
    return replace(made, **changes)


VARIANTS = (
    variant("uncached", "uncached", "uncached"),
    variant("2 steps", "fewer-steps", "fewer steps", 2),
    variant("4 steps", "fewer-steps", "fewer steps", 4),
    variant("fora interval=2", of=plan(2)),
    variant(NASTY, "plan", "plans", of=plan(3)),
)
SECONDS = {"uncached": 6.0, "2 steps": 2.0, "4 steps": 4.0, "fora interval=2": 3.0, NASTY: 1.0}
FIGURES = {
    "uncached": figures_of(VARIANTS[0], 0.0, 0.0, held_bytes=0),
    "2 steps": figures_of(VARIANTS[1], -0.2, 0.04, held_bytes=0),
    "4 steps": figures_of(VARIANTS[2], -0.1, 0.01, held_bytes=0),
    "fora interval=2": figures_of(VARIANTS[3], 0.05, 0.001),
    NASTY: figures_of(VARIANTS[4], -0.3, 0.1, macs=None, held_bytes=None, notes=("left nothing out",)),
}


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGB", (16, 16), "white")
    ImageDraw.Draw(image).ellipse((2, 2, 12, 12), fill=colour)
    image.save(stream, "PNG")
    return stream.getvalue()


def example() -> Benchmark:
    """A small benchmark of figures that are made up."""
    rounds = [SECONDS, {name: 2 * seconds for name, seconds in SECONDS.items()}, SECONDS]
    return Benchmark(
        model="tiny $model",
        asked={"steps": 6},
        settings="6 steps",
        hardware="a machine",
        rounds=3,
        results=results(VARIANTS, FIGURES, rounds, 2, 1),
        alike=(Alike("again", "fora", {}, "fora interval=2"),),
        failed=(Failed("deepcache", "deepcache", {}, "no U-Net <here>"),),
        prompts=("a", "b"),
        pictures=dict.fromkeys(SECONDS, (picture("red"), picture("blue"))),
        notes=("LPIPS was not measured: why.",),
    )


@pytest.fixture(scope="module")
def found() -> Benchmark:
    return example()


def test_a_run_of_fewer_calls_stands_beside_as_many_of_the_untouched_sampler():
    replayed = variant("ltc", of=plan(1).replaying({2: 1.0, 3: 1.0, 5: 1.0}))
    shown = (*VARIANTS[:4], replayed)
    figures = {**FIGURES, "ltc": figures_of(replayed, 0.0, 0.001)}
    found = results(shown, figures, [{**SECONDS, "ltc": 5.0}], 2, 1)
    assert [each.variant.calls for each in found] == [6, 2, 4, 6, 3]
    assert [each.rival_at_calls for each in found[:4]] == [None] * 4
    at_calls = found[4].rival_at_calls
    assert at_calls.steps == (2, 4)
    assert at_calls.reward == pytest.approx(np.mean(SCORES) - 0.15)
    assert at_calls.psnr == pytest.approx(-10 * np.log10(0.025))
    assert found[4].rival.steps == (4, 6)
    told = json.loads(record.to_json(replace(example(), results=found, pictures={})))["runs"][4]
    assert (told["calls"], told["same_calls"]["steps"], told["same_calls"]["beaten"]) == (3, [2, 4], at_calls.beaten)


class TestRival:
    LINE = tuple((SECONDS[name], FIGURES[name]) for name in ("uncached", "2 steps", "4 steps"))

    def at(self, seconds, **changes):
        return rival(self.LINE, seconds, replace(FIGURES["fora interval=2"], **changes), 1)

    def test_between_two_numbers_of_steps_it_lies_on_the_line(self):
        other = self.at(3.0)
        assert other.steps == (2, 4)
        assert other.reward == pytest.approx(np.mean(SCORES) - 0.15)
        assert other.psnr == pytest.approx(-10 * math.log10(0.025))
        assert other.gain == pytest.approx(0.2)

    def test_towards_the_uncached_sampler_the_error_goes_to_nothing(self):
        assert self.at(5.0).psnr == pytest.approx(-10 * math.log10(0.005))
        assert self.at(5.0).steps == (4, 6)

    @pytest.mark.parametrize(("seconds", "steps"), [(2.0, (2,)), (4.0, (4,)), (6.0, (6,)), (60.0, (6,))])
    def test_a_number_of_steps_that_is_met_stands_alone(self, seconds, steps):
        other = self.at(seconds)
        assert other.steps == steps
        assert other.reward == pytest.approx(
            {2: FIGURES["2 steps"], 4: FIGURES["4 steps"], 6: FIGURES["uncached"]}[steps[0]].reward
        )
        assert math.isinf(other.psnr) == (steps == (6,))

    def test_what_is_faster_than_all_has_none(self):
        assert self.at(1.9) is None

    def test_the_interval_is_that_of_the_differences(self):
        """Rewards differ much from prompt to prompt, but the gain is the same on each: the interval has no width."""
        other = self.at(3.0)
        assert other.gain_low == pytest.approx(0.2) == other.gain_high
        assert other.beaten == "yes"
        spread = tuple(score + shift for score, shift in zip(SCORES, (0.3, -0.2, 0.1, -0.3), strict=True))
        uneven = self.at(3.0, scores=spread)
        low, high = confidence_interval([0.45, -0.05, 0.25, -0.15], 1)
        assert (uneven.gain_low, uneven.gain_high) == pytest.approx((low, high))
        assert uneven.beaten == "even"
        worse = self.at(3.0, scores=tuple(score - 0.5 for score in SCORES))
        assert worse.beaten == "no"

    def test_seconds_that_do_not_rise_with_the_steps_are_no_trouble(self):
        line = (*self.LINE, (7.0, replace(FIGURES["4 steps"], steps=5)))
        other = rival(line, 6.5, FIGURES["fora interval=2"], 1)
        assert other.steps == (5, 6)
        assert other.reward == pytest.approx(np.mean(SCORES) - 0.05)


class TestFront:
    def test_no_other_is_as_cheap_and_as_good(self):
        points = [(1.0, 0.1), (2.0, 0.5), (2.0, 0.4), (3.0, 0.5), (4.0, 0.9), (2.5, 0.2), (4.0, 0.9)]
        assert non_dominated(points) == {0, 1, 4, 6}
        assert non_dominated([]) == set()

    def test_it_is_of_all_runs_by_rising_seconds(self, found):
        assert [result.variant.name for result in found.front] == [NASTY, "2 steps", "fora interval=2"]

    def test_groups_keep_their_order(self, found):
        assert found.groups == ("uncached", "fewer steps", "fora", "plans")
        assert [result.variant.name for result in found.of_group("fewer steps")] == ["4 steps", "2 steps"]


def test_a_slow_round_moves_no_run_against_another(found):
    """In the second of three rounds everything took twice as long."""
    assert [result.seconds for result in found.results] == [3.0, 1.0, 2.0, 1.5, 0.5]
    assert [result.seconds_ratio for result in found.results] == [1, 3, 1.5, 2, 6]


def test_psnr_of_an_error():
    assert psnr_of(0.01) == pytest.approx(20)
    assert psnr_of(0) == math.inf


class TestFigures:
    def test_round_trip(self):
        for figures in FIGURES.values():
            assert Figures.from_json(figures.to_json(), "file") == figures

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"scores": []}, "no finite numbers, or none"),
            ({"scores": ["a"]}, "no finite numbers"),
            ({"macs": 1.5}, "macs 1.5"),
            ({"held_bytes": -1}, "held_bytes -1"),
            ({"error": None}, "error None"),
            ({"ssim": True}, "ssim True"),
            ({"steps": 0}, "steps 0"),
            ({"notes": [1]}, "notes that are no texts"),
            ({"plan": {}}, "file: "),
            ({"festina_bench_run": 2}, "another version"),
            ({"more": 1}, "holds no figures"),
        ],
    )
    def test_other_files_are_refused(self, change, words):
        text = json.dumps(json.loads(FIGURES["uncached"].to_json()) | change)
        with pytest.raises(FestinaError, match=re.escape(words)):
            Figures.from_json(text, "file")


class TestLineup:
    def test_a_plan_that_computes_everything_is_the_untouched_sampler(self):
        whole = variant("all", of=plan(1))
        found = lineup([VARIANTS[0], whole])
        assert found.variants == VARIANTS[:1]
        assert [(each.name, each.same_as) for each in found.alike] == [("all", "uncached")]

    def test_names_are_unique(self):
        with pytest.raises(FestinaError, match="two runs are called 'uncached'"):
            lineup([VARIANTS[0], VARIANTS[0]])


class TestFolder:
    def test_only_rounds_of_all_variants_as_they_are_count(self, tmp_path):
        folder = Folder(tmp_path, {"steps": 6})
        folder.keep_round(VARIANTS, SECONDS)
        folder.keep_round(VARIANTS[:3], SECONDS)
        assert folder.rounds(VARIANTS) == [SECONDS]
        few = {name: SECONDS[name] for name in list(SECONDS)[:3]}
        assert folder.rounds(VARIANTS[:3]) == [few, few]
        other = replace(VARIANTS[3], plan=plan(4))
        assert folder.rounds([*VARIANTS[:3], other]) == []

    def test_figures_without_their_sheet_are_not_done(self, tmp_path):
        folder = Folder(tmp_path, {})
        folder.keep(VARIANTS[3], FIGURES["fora interval=2"], picture("red"))
        assert folder.figures(VARIANTS[3]) == FIGURES["fora interval=2"]
        assert folder.figures(replace(VARIANTS[3], plan=plan(4))) is None
        folder.sheet(VARIANTS[3]).unlink()
        assert folder.figures(VARIANTS[3]) is None

    def test_where_no_folder_can_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(FestinaError, match="cannot make the folder"):
            Folder(tmp_path / "file", {})

    def test_files_have_names_of_their_own(self):
        assert re.fullmatch(r"a-b-1-[0-9a-f]{6}", slug("A  b=1"))
        assert len({slug(name) for name in ("a b", "a-b", "A b", "a=b", "<>", "><")}) == 6
        assert len(slug("x" * 500)) < 100


class TestRecord:
    def test_is_strict_json_with_all_figures(self, found):
        data = json.loads(record.to_json(found), parse_constant=lambda name: pytest.fail(name))
        assert data["festina_bench"] == record.SCHEMA
        assert [run["name"] for run in data["runs"]] == list(SECONDS)
        first, *_, fora, own = data["runs"]
        assert (first["psnr"], first["same_seconds"], first["seconds_ratio"]) == ("inf", None, 1)
        assert (fora["macs"], fora["held_bytes"], fora["ssim"], fora["lpips"]) == (1000, 2048, 0.9, None)
        assert fora["same_seconds"]["beaten"] == "yes"
        assert fora["same_seconds"]["steps"] == [2, 4]
        assert (own["macs"], own["same_seconds"], own["notes"]) == (None, None, ["left nothing out"])
        assert data["front"] == [NASTY, "2 steps", "fora interval=2"]
        assert data["failed"] == [
            {"name": "deepcache", "group": "deepcache", "settings": {}, "reason": "no U-Net <here>"}
        ]
        assert data["alike"][0]["same_as"] == "fora interval=2"

    def test_markdown_has_every_run_and_what_is_missing(self, found):
        text = record.to_markdown(found)
        lines = [line for line in text.splitlines() if line.startswith("| fora interval=2 |")]
        cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
        assert len(cells) == len(record.COLUMNS)
        assert cells[1:6] == ["2.00×", "1.50 s", "6", "1.00 kMACs", "2.00 KiB"]  # noqa: RUF001
        rival = ["2 to 4 steps", "0.450", "16.0 dB", "yes"]
        assert cells[8:] == ["30.0 dB", "0.900", "–", *rival, "–", "–"]  # noqa: RUF001
        for heading in ("Front of seconds and reward", "The same as another run", "Could not be run", "Seen besides"):
            assert f"## {heading}\n" in text
        assert "no U-Net \\<here>" in text
        assert "LPIPS was not measured: why." in text

    def test_front_is_a_list_of_lines(self, found):
        assert record.front_lines(found)[2] == "fora interval=2: 2.00× as fast as uncached, reward 0.650"  # noqa: RUF001


def test_the_page_holds_every_run_and_escapes_every_text(found):
    text = page_html(found)
    data = json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text).group(1))
    assert [point["name"] for point in data["points"]] == list(SECONDS)
    assert data["line"] == [NASTY, "2 steps", "fora interval=2"]
    assert {kind["kind"] for kind in data["kinds"]} == {point["kind"] for point in data["points"]}
    assert len(data["points"][0]["pictures"]) == 2
    assert NASTY not in text.replace(json.dumps(NASTY), "")
    assert "no U-Net &lt;here&gt;" in text
    assert "tiny $model" in text
    assert text.count('<tr data-point="') == len(SECONDS)


def test_fields_of_figures_are_in_the_record(found):
    run = json.loads(record.to_json(found))["runs"][0]
    left_out = {"plan", "scores", "error"}
    assert {field.name for field in fields(Figures)} - left_out <= set(run)


def test_the_page_of_benchmarks_explains_every_key(found):
    page = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+)`", page.partition("### bench.json")[2].partition("\n## ")[0]))
    data = json.loads(record.to_json(found))
    wanted = {*data, *data["runs"][0], *data["runs"][3]["same_seconds"], "same_as", "reason"}
    assert wanted <= told
