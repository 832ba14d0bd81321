"""The judge of videos: it reads what is said, motion among it, and ranks what is worse below what is better."""

import pytest
import torch
from test_search_reward import clip_folder  # noqa: F401

from festina import FestinaError
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.judge import ABSENT, HEADS
from festina.metrics.reward import ClipReward, JudgeReward, weights_fingerprint
from festina.metrics.video_judge import MOTION, VIDEO_HEADS, VideoJudge, load_video_judge, moving_targets
from festina.zoo import loading, shipped_judge
from festina.zoo.grammar import COLOURS
from festina.zoo.motion import DIRECTIONS, MovingScene, directions_of, render_moving, sample_moving_scenes
from festina.zoo.train import save_judge

TURNED = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def drawn():
    """Moving scenes, half of them with held-out combinations, and their videos."""
    scenes = sample_moving_scenes(20, 4242) + sample_moving_scenes(20, 4243, held_out=True)
    return scenes, render_moving(scenes, seed=99)


@pytest.fixture(scope="module")
def judge():
    """The judge that ships."""
    folder = loading.WEIGHTS / "scenes-video" / "judge"
    if not folder.is_dir():
        pytest.skip("the judge of videos has not been trained in this checkout")
    return load_video_judge(folder)


@pytest.fixture(scope="module")
def untaught():
    """A judge that reads frames as the judge of pictures does, and has not learned to read motion."""
    torch.manual_seed(0)
    made = VideoJudge().eval()
    made.frames.load_state_dict(shipped_judge().state_dict())
    return made


def said(scenes):
    return [scene.caption() for scene in scenes]


def turned(scenes):
    return said([MovingScene(moving.scene, TURNED[moving.direction]) for moving in scenes])


def test_attributes_are_the_mean_over_the_frames(untaught, drawn):
    scenes, videos = drawn[0][:4], drawn[1][:4]
    with torch.no_grad():
        read = untaught(videos)
        frames = [untaught.frames(videos[:, number]) for number in range(videos.shape[1])]
    assert set(read) == set(VIDEO_HEADS)
    for head in HEADS:
        mean = torch.stack([frame[head].softmax(1) for frame in frames]).mean(0)
        assert torch.allclose(read[head].exp(), mean, atol=1e-5)
    assert torch.allclose(read[MOTION].exp().sum(1), torch.ones(4), atol=1e-5)
    targets = moving_targets(scenes)
    wanted = []
    for row in range(4):
        told = [read[head][row, targets[head][row]].exp() for head in VIDEO_HEADS if targets[head][row] != ABSENT]
        wanted.append(torch.stack(told).mean())
    assert torch.allclose(untaught.reward(videos, said(scenes)), torch.stack(wanted), atol=1e-5)


def test_a_judge_reads_the_same_from_its_folder(untaught, drawn, tmp_path):
    save_judge(untaught, tmp_path)
    videos, captions = drawn[1][:4], said(drawn[0][:4])
    found = load_video_judge(tmp_path)
    # Weights are kept in half precision.
    assert torch.allclose(found.reward(videos, captions), untaught.reward(videos, captions), atol=0.02)
    with pytest.raises(FestinaError, match=r"no judge of videos in .*festina zoo train scenes-video"):
        load_video_judge(tmp_path / "nothing")


def test_videos_and_pictures_have_judges_of_their_own(untaught):
    caption = "a small red circle moving up on a white background"
    with pytest.raises(FestinaError, match="Pictures have a judge of their own"):
        untaught.reward(torch.zeros(1, 3, 64, 64), [caption])
    with pytest.raises(FestinaError, match="Videos have a judge of their own"):
        shipped_judge().reward(torch.zeros(1, 8, 3, 64, 64), ["a small red circle on a white background"])
    with pytest.raises(FestinaError, match="2 videos but 1 captions"):
        untaught.reward(torch.zeros(2, 8, 3, 64, 64), [caption])
    with pytest.raises(FestinaError, match="not a caption of a moving scene"):
        untaught.reward(torch.zeros(1, 8, 3, 64, 64), ["a small red circle on a white background"])


def test_a_judge_is_a_reward(untaught, drawn):
    reward = JudgeReward(untaught)
    assert reward.fingerprint == weights_fingerprint(untaught)
    assert torch.equal(reward(drawn[1][:3], said(drawn[0][:3])), untaught.reward(drawn[1][:3], said(drawn[0][:3])))


def test_clip_scores_a_video_as_the_mean_of_its_frames(clip_folder):  # noqa: F811
    reward = ClipReward(clip_folder)
    videos = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = ["red circle", "blue square"]
    frames = torch.stack([reward(videos[:, number], prompts) for number in range(3)])
    assert torch.allclose(reward(videos, prompts), frames.mean(0), atol=1e-6)
    with pytest.raises(FestinaError, match="one prompt per picture"):
        reward(videos, ["one"])


def test_psnr_of_a_video_is_over_all_frames():
    black = torch.zeros(1, 4, 3, 8, 8)
    grey = black.clone()
    grey[:, 0] = 0.2
    assert psnr(grey, black).tolist() == pytest.approx([20.0])
    with pytest.raises(FestinaError, match="shape"):
        psnr(black, black[:, :3])


def test_it_reads_every_attribute_of_renders(judge, drawn):
    scenes, videos = drawn
    right, applies = judge.correct(videos, said(scenes))
    shares = right.sum(0) / applies.sum(0)
    assert shares.min() >= 0.95, dict(zip(VIDEO_HEADS, shares.tolist(), strict=True))


def test_the_reward_ranks_damage(judge, drawn):
    scenes, videos = drawn
    captions = said(scenes)
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    levels = [judge.reward((videos + size * noise).clamp(0, 1), captions).mean() for size in (0, 0.1, 0.2, 0.4)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 0.95
    for worse in (videos.roll(1, 0), torch.full_like(videos, 0.5), 0.5 * videos + 0.5 * videos.roll(1, 0)):
        assert judge.reward(worse, captions).mean() < levels[0] - 0.1


def test_motion_the_wrong_way_or_none_costs_its_share(judge, drawn):
    scenes, videos = drawn
    captions = said(scenes)
    _, applies = judge.correct(videos, captions)
    good = judge.reward(videos, captions)
    for worse, least in (
        (judge.reward(videos.flip(1), captions), 0.8),
        (judge.reward(videos, turned(scenes)), 0.8),
        # A video that stands still shows no direction; where its object stands is but a hint.
        (judge.reward(videos[:, :1].expand_as(videos), captions), 0.3),
    ):
        lost = (good - worse) * applies.sum(1)
        assert lost.mean() > least
        assert (worse < good).float().mean() > 0.9
    backwards, _ = judge.correct(videos.flip(1), turned(scenes))
    assert backwards[:, list(VIDEO_HEADS).index(MOTION)].float().mean() > 0.95


def test_a_wrong_word_costs_its_share(judge, drawn):
    scenes, videos = drawn
    captions = said(scenes)
    others = []
    for moving in scenes:
        colour = COLOURS[(COLOURS.index(moving.scene.first.colour) + 1) % len(COLOURS)]
        words = moving.caption().split()
        others.append(" ".join([*words[:2], colour, *words[3:]]))
    good, worse = judge.reward(videos, captions), judge.reward(videos, others)
    _, applies = judge.correct(videos, captions)
    assert ((good - worse) * applies.sum(1)).mean() == pytest.approx(1, abs=0.15)


def test_the_frechet_distance_ranks_damage(judge, drawn):
    scenes, videos = drawn
    again = render_moving(scenes, seed=100)
    with torch.no_grad():
        reference = judge.features(videos)
        same = frechet_distance(judge.features(again), reference)
        noise = 0.2 * torch.randn(again.shape, generator=torch.Generator().manual_seed(0))
        noisy = frechet_distance(judge.features((again + noise).clamp(0, 1)), reference)
        nothing = frechet_distance(judge.features(torch.rand(again.shape)), reference)
        frozen = frechet_distance(judge.features(again[:, :1].expand_as(again)), reference)
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-3)
    assert same < noisy < nothing
    assert same < frozen


def test_every_direction_has_its_opposite():
    assert set(TURNED) == set(DIRECTIONS)
    for moving in sample_moving_scenes(50, 1):
        assert TURNED[moving.direction] in directions_of(moving.scene)
