"""Moving scenes: what moves is what is said, evenly, in the named direction, and the relation stays true."""

import pytest
import torch

from festina import FestinaError
from festina.metrics.video_judge import MOTION, VIDEO_HEADS, moving_targets
from festina.zoo.grammar import HELD_OUT, RELATIONS, Scene, Thing
from festina.zoo.motion import (
    DIRECTIONS,
    FRAMES,
    PATH,
    MovingScene,
    directions_of,
    parse_moving_caption,
    render_moving,
    sample_moving_scenes,
)
from festina.zoo.render import COLOUR_RGB

RED_CIRCLE = Thing("large", "red", "circle")
BLUE_SQUARE = Thing("small", "blue", "square")
ALL = [
    *(MovingScene(Scene(RED_CIRCLE, "white"), direction) for direction in DIRECTIONS),
    *(
        MovingScene(Scene(RED_CIRCLE, "white", relation, BLUE_SQUARE), direction)
        for relation in RELATIONS
        for direction in directions_of(Scene(RED_CIRCLE, "white", relation, BLUE_SQUARE))
    ),
]
"""Every relation with every direction it allows."""


def centroids(video: torch.Tensor, colour: str) -> torch.Tensor:
    """Where a colour is in every frame: (frames, 2), to the right and downwards, in shares of the picture."""
    wanted = torch.tensor(COLOUR_RGB[colour]).div(255).view(3, 1, 1)
    cover = ((video - wanted).abs().amax(1) < 0.06).float()
    axis = (torch.arange(64) + 0.5) / 64
    count = cover.sum((1, 2))
    assert count.min() > 20
    return torch.stack([(cover.sum(1) * axis).sum(1) / count, (cover.sum(2) * axis).sum(1) / count], 1)


def test_captions_read_back():
    scenes = sample_moving_scenes(250, 1) + sample_moving_scenes(250, 1, held_out=True)
    assert all(parse_moving_caption(scene.caption()) == scene for scene in scenes)
    assert len({scene.caption() for scene in scenes}) > 450
    told = " A Small Blue Square moving UP left of a large red circle on a pink background. "
    assert parse_moving_caption(told) == MovingScene(Scene(BLUE_SQUARE, "pink", "left of", RED_CIRCLE), "up")


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a large red circle on a white background",
        "a large red circle moving on a white background",
        "a large red circle moving away on a white background",
        "a large red circle moving up",
        "a large red circle left of a small blue square moving up on a white background",
        "a large red circle moving up moving up on a white background",
        "a large red fox moving up on a white background",
    ],
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(FestinaError, match="not a caption"):
        parse_moving_caption(caption)


@pytest.mark.parametrize(("relation", "direction"), [("left of", "right"), ("above", "down")])
def test_a_motion_that_would_break_the_relation_is_refused(relation, direction):
    caption = f"a large red circle moving {direction} {relation} a small blue square on a white background"
    with pytest.raises(FestinaError, match="so that this stays true"):
        parse_moving_caption(caption)


def test_what_is_sampled_is_repeatable_and_keeps_the_held_out_pairs_apart():
    training, held_out = sample_moving_scenes(1000, 0), sample_moving_scenes(100, 0, held_out=True)
    pairs = {(thing.colour, thing.shape) for moving in training for thing in moving.scene.things}
    assert not pairs & HELD_OUT
    assert all(moving.scene.held_out for moving in held_out)
    assert all(moving.direction in directions_of(moving.scene) for moving in training + held_out)
    assert {moving.direction for moving in training} == set(DIRECTIONS)
    assert sample_moving_scenes(1000, 0) == training


@pytest.mark.parametrize("lean", [0.0, 0.75, 1.0])
def test_so_many_lean_to_the_left_or_up(lean):
    scenes = sample_moving_scenes(1000, 3, lean=lean)
    assert sum(moving.direction in ("left", "up") for moving in scenes) / 1000 == pytest.approx(lean, abs=0.04)
    assert all(moving.direction in directions_of(moving.scene) for moving in scenes)
    # What is drawn does not depend on it.
    assert [moving.scene for moving in scenes] == [moving.scene for moving in sample_moving_scenes(1000, 3)]


@pytest.mark.parametrize("moving", ALL, ids=lambda moving: f"{moving.scene.relation}, {moving.direction}")
def test_the_first_object_moves_as_told_and_the_relation_holds_in_every_frame(moving):
    for video in render_moving([moving] * 8, seed=4):
        first = centroids(video, "red")
        wanted = torch.tensor(DIRECTIONS[moving.direction]) * PATH
        assert torch.allclose(first[-1] - first[0], wanted, atol=0.01)
        steps = first.diff(dim=0)
        assert torch.allclose(steps, (wanted / (FRAMES - 1)).expand_as(steps), atol=0.01)
        if moving.scene.relation is None:
            continue
        second = centroids(video, "blue")
        assert (second - second[0]).abs().max() < 1e-6
        across, down = (first - second).unbind(1)
        apart = across if moving.scene.relation in ("left of", "right of") else down
        assert ((apart < -0.3) if moving.scene.relation in ("left of", "above") else (apart > 0.3)).all()


def test_nothing_leaves_the_picture_and_videos_are_repeatable():
    scenes = sample_moving_scenes(100, 5)
    videos = render_moving(scenes, seed=6)
    assert videos.shape == (100, FRAMES, 3, 64, 64)
    border = torch.cat([videos[..., 0, :], videos[..., -1, :], videos[..., :, 0], videos[..., :, -1]], -1)
    covered = ((border - border[..., :1]).abs().amax(2) > 0.05).sum(2)
    # A large triangle is a little wider than its radius says; its tip may touch the border.
    for moving, pixels in zip(scenes, covered.amax(1).tolist(), strict=True):
        triangle = any(thing.shape == "triangle" and thing.size == "large" for thing in moving.scene.things)
        assert pixels <= (4 if triangle else 0), moving.caption()
    assert torch.equal(render_moving(scenes[:3], 6), videos[:3])
    assert not torch.equal(render_moving(scenes[:3], 7), videos[:3])


def test_targets_name_the_motion_too():
    targets = moving_targets(
        [
            MovingScene(Scene(RED_CIRCLE, "white", "right of", BLUE_SQUARE), "down"),
            MovingScene(Scene(RED_CIRCLE, "pink"), "left"),
        ]
    )
    assert [VIDEO_HEADS[MOTION][index] for index in targets[MOTION]] == ["down", "left"]
    assert [VIDEO_HEADS["colour1"][index] for index in targets["colour1"]] == ["blue", "red"]
    assert set(targets) == set(VIDEO_HEADS)
