"""A believable page for the report's tests, and tests of the sentence that heads it."""

# ruff: noqa: RUF001 (the signs that figures are written with)

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from festina.plan import Plan, Step, even_noise
from festina.report.headline import headline, untouched_at
from festina.report.points import FrontPage, Point
from festina.report.schedule import panels

STEPS, BLOCKS = 20, 8
PARTS = ("attn1", "attn2", "ff")
SITES = tuple(f"transformer_blocks.{block}.{part}" for block in range(BLOCKS) for part in PARTS)
UNCACHED_MACS = 20_000_000_000
NASTY = "front \"7\" & <i>'$title'</i>"
PROMPTS = (
    "a large red circle left of a small blue square on a white background",
    "a small green star on a black background",
    "a large yellow triangle above a large purple ring on a grey background",
    'a <b>"quoted"</b> & \'odd\' prompt </script><script>document.title="broken"</script> <!-- ${title}',
)
_SCENES = (("white", "#d33", 0), ("black", "#3b4", 1), ("#888", "#ec3", 0), ("pink", "#36c", 2))


def picture(number: int, shift: float) -> bytes:
    """A 64 x 64 PNG of prompt `number`, its object moved by `shift` pixels."""
    ground, paint, shape = _SCENES[number]
    image = Image.new("RGB", (64, 64), ground)
    draw = ImageDraw.Draw(image)
    box = (14 + shift, 16 + shift / 2, 46 + shift, 48 + shift / 2)
    (draw.ellipse, draw.rectangle, lambda area, fill: draw.regular_polygon((30 + shift, 32, 18), 5, fill=fill))[shape](
        box, fill=paint
    )
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def schedule(kept: float, seed: int, method: str, forecasts: bool = False) -> Plan:
    """A plan that computes about the share `kept`, more of it in early steps."""
    generator = np.random.default_rng(seed)
    chance = kept * np.linspace(1.5, 0.5, STEPS)[:, None]
    drawn = generator.random((STEPS, len(SITES)))
    actions = np.where(drawn < chance, "C", np.where(forecasts & (drawn > 0.8), "2", "R"))
    if forecasts:
        actions[-3:, 1::3] = "S"
    rows = ("".join(row) for row in actions)
    steps = tuple(Step(level, row) for level, row in zip(even_noise(STEPS), rows, strict=True))
    return Plan("PixArtTransformer2DModel", SITES, steps, method=method, settings={"seed": seed})


def point(name, kind, share, seconds_share, reward, number, **changes) -> Point:
    plan = None
    if kind not in ("fewer-steps", "uncached"):
        plan = schedule(share, number, "search" if kind == "front" else "fora", forecasts=kind == "front")
    made = Point(
        name=name,
        kind=kind,
        steps=max(1, round(STEPS * share)) if kind == "fewer-steps" else STEPS,
        macs=round(UNCACHED_MACS * share),
        seconds=0.52 * seconds_share,
        seconds_ratio=1 / seconds_share,
        reward=reward,
        reward_low=reward - 0.012,
        reward_high=reward + 0.011,
        frechet=3.1 + 20 * (0.9 - reward),
        psnr=18 + 14 * share,
        held_bytes=0 if plan is None else 393_216 * number,
        plan=plan,
        pictures=tuple(picture(prompt, 8 * (1 - share)) for prompt in range(len(PROMPTS))),
    )
    return replace(made, **changes)


def example_page() -> FrontPage:
    """Five front points, four seeds, three FORA points, four of fewer steps and uncached."""
    points = [point("uncached", "uncached", 1.0, 1.0, 0.861, 0, psnr=None, seconds_ratio=1.0)]
    front = ((0.72, 0.78, 0.866), (0.48, 0.57, 0.858), (0.36, 0.46, 0.843), (0.27, 0.38, 0.815), (0.2, 0.31, 0.762))
    for number, (share, seconds, reward) in enumerate(front, start=1):
        name = NASTY if number == 3 else f"front-{number}"
        points.append(point(name, "front", share, seconds, reward, number))
    for number, (share, reward) in enumerate(((0.5, 0.835), (0.4, 0.802), (0.3, 0.741), (0.2, 0.633)), start=1):
        points.append(point(f"{round(20 * share)} steps", "fewer-steps", share, share * 1.02, reward, number))
    for every, (share, reward) in zip((2, 3, 4), ((0.5, 0.828), (0.35, 0.771), (0.25, 0.69)), strict=True):
        points.append(point(f"FORA {every}", "fora", share, share + 0.1, reward, every))
    for number, (share, reward) in enumerate(((0.8, 0.84), (0.66, 0.81), (0.55, 0.77), (0.4, 0.72)), start=1):
        points.append(point(f"seed-{number}", "seed", share, share + 0.09, reward, number, pictures=()))
    return FrontPage(
        title="Scenes: quality against cost",
        model="PixArt-style transformer, 64 × 64, 20 steps",
        prompts=PROMPTS,
        points=tuple(points),
        hardware="2 cores of an x86 server, one thread",
        settings="DPM-Solver++, 20 steps, guidance 4.5; reward over 512 held-out prompts, one seed each",
        notes=(
            "Seconds are medians of interleaved runs.",
            "Rewards of the front are taken on prompts the search never saw.",
        ),
    )


@pytest.fixture
def page() -> FrontPage:
    return example_page()


def test_headline_compares_the_best_cheap_plan_with_fewer_steps_at_the_same_seconds(page):
    best = headline(page)
    # 0.48 of the MACs; 0.57 of the seconds lies between 10 steps (0.51) and uncached (1.00).
    at_same_seconds = 0.835 + (0.57 - 0.51) / (1 - 0.51) * (0.861 - 0.835)
    assert best.point is not None
    assert best.point.name == "front-2"
    assert best.text == (
        "The plan front-2 needs 2.08× fewer MACs than uncached and runs 1.75× as fast (0.296 s a picture instead of "
        "0.520 s) at a reward of 0.858 (95 % interval 0.846 to 0.869) against 0.861 (0.849 to 0.872) uncached; the "
        f"untouched sampler with fewer steps (10 to 20) reaches {at_same_seconds:.3f} in the same seconds, below the "
        "plan's interval."
    )
    assert [text for text, stressed in best.parts if stressed][:2] == ["2.08× fewer MACs", "1.75× as fast"]


def test_headline_says_when_fewer_steps_win(page):
    better = [replace(p, reward=0.9, reward_high=0.91) if p.kind == "fewer-steps" else p for p in page.points]
    assert headline(replace(page, points=tuple(better))).text.endswith("above the plan's interval.")


def test_headline_without_timings_compares_at_equal_macs(page):
    untimed = tuple(replace(p, seconds=None, seconds_ratio=None) for p in page.points)
    text = headline(replace(page, points=untimed)).text
    assert "was not timed" in text
    assert "in the same MACs" in text
    assert "as fast" not in text


def test_headline_admits_what_is_missing(page):
    def without(*kinds):
        return replace(page, points=tuple(p for p in page.points if p.kind not in kinds))

    assert headline(without("front")).point is None
    assert headline(without("front")).text.startswith("No plan on the front needs at least 2× fewer MACs")
    assert headline(without("fewer-steps")).text.endswith("the untouched sampler with fewer steps was not measured.")
    slow = tuple(replace(p, seconds=0.5) if p.kind == "fewer-steps" else p for p in page.points)
    assert "needs so few seconds" in headline(replace(page, points=slow)).text


def test_untouched_sampler_at_a_cost(page):
    def macs(one):
        return one.macs

    at_ten_steps = untouched_at(page, macs, 0.5 * UNCACHED_MACS)
    assert at_ten_steps is not None
    assert (at_ten_steps.reward, at_ten_steps.steps) == (0.835, (10,))
    between = untouched_at(page, macs, 0.45 * UNCACHED_MACS)
    assert between is not None
    assert between.reward == pytest.approx((0.835 + 0.802) / 2)
    assert between.steps == (8, 10)
    dear = untouched_at(page, macs, 2 * UNCACHED_MACS)
    assert dear is not None
    assert (dear.reward, dear.steps) == (0.861, (20,))
    assert untouched_at(page, macs, 0.19 * UNCACHED_MACS) is None


def test_panels_group_the_canonical_schedule_by_component():
    plan = Plan("D", ("b.0.attn1", "b.0.ff", "b.1.attn1", "b.1.ff"), (Step(1.0, "RRCC"), Step(0.5, "CR2S")))
    found = panels(plan)
    assert [panel.title for panel in found] == ["self-attention (attn1)", "feed-forward (ff)"]
    assert [panel.labels for panel in found] == [("0", "1"), ("0", "1")]
    # The first step computes; a forecast after one computed value is a reuse.
    assert [panel.rows for panel in found] == [("CC", "CR"), ("CR", "CS")]


def test_panels_name_stacks_where_there_are_several_and_keep_paths_of_nested_blocks():
    sites = ("double.0.attn", "single.0:residual", "down_blocks.1.attentions.0.transformer_blocks.2.attn1", "conv_in")
    found = panels(Plan.computing_all("D", sites, 2))
    assert [(panel.title, panel.labels) for panel in found] == [
        ("double: attention (attn)", ("0",)),
        ("single: whole block", ("0",)),
        ("down_blocks: self-attention (attn1)", ("1.attentions.0.transformer_blocks.2",)),
        ("sites", ("conv_in",)),
    ]


def test_panels_show_runs_by_their_whole_names():
    sites = ("b.0..3:residual", "b.4..7:residual", "down_blocks.1..up_blocks.1:feature")
    (panel,) = panels(Plan("U", sites, (Step(1.0, "CCC"), Step(0.5, "RRC"))))
    assert (panel.title, panel.labels) == ("sites", sites)
    assert panel.rows == ("CR", "CR", "CC")
