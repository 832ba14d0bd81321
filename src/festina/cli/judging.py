"""What judges the pictures of a command: a reward by its name, and the features of a Frechet distance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from festina.errors import FestinaError

if TYPE_CHECKING:
    from festina.metrics.reward import Reward
    from festina.metrics.video_judge import VideoJudge


def load_reward(name: str | None, device: str, model: str = "scenes") -> Reward:
    """The reward of this name.

    Args:
        name: "judge": the judge that ships for the model, of pictures for what does not ship; "video-judge": the judge
            beside a model one trained oneself, or the one that ships; "clip:MODEL".
        device: where it runs.
        model: the model whose pictures it is for.

    Raises:
        FestinaError: none is named, or it is unknown or cannot be loaded.
    """
    from festina.metrics.reward import ClipReward, JudgeReward
    from festina.zoo import shipped_judge
    from festina.zoo.shipped import shipped

    if name == "judge":
        ours = shipped(model)
        return JudgeReward(ours.judge(device) if ours else shipped_judge(device))
    if name == "video-judge":
        return JudgeReward(_video_judge(model, device))
    if name is not None and name.startswith("clip:") and len(name) > 5:
        return ClipReward(name[5:], device)
    found = "no --reward" if name is None else f"--reward {name!r}"
    raise FestinaError(
        f"{found}; wanted 'judge' (of the pipelines that ship), 'video-judge' (of moving scenes) or 'clip:MODEL' with "
        f"a folder or Hub id, e.g. clip:openai/clip-vit-base-patch32."
    )


def _video_judge(model: str, device: str) -> VideoJudge:
    """The judge of videos in the folder beside a pipeline, as `festina zoo train` writes it, or the one that ships."""
    from festina.metrics.video_judge import load_video_judge
    from festina.zoo.loading import WEIGHTS
    from festina.zoo.shipped import shipped

    beside = Path(model).resolve().parent / "judge"
    trained = shipped(model) is None and beside.is_dir()
    return load_video_judge(beside if trained else WEIGHTS / "scenes-video" / "judge", device)


def fidelity_of(model: str, prompts: tuple[str, ...], device: Any) -> Any:
    """The judge's features and those of real renders of the same captions, for a pipeline that ships; None for any
    other model, and for prompts that no renderer could draw."""
    from festina.report.comparison import Fidelity
    from festina.zoo.shipped import shipped

    ours = shipped(model)
    if ours is None:
        return None
    try:
        renders = ours.renders(prompts * max(1, 512 // len(prompts)), seed=7)
    except FestinaError:
        return None
    judge = ours.judge(device)

    def features(images: Any) -> Any:
        import torch

        with torch.no_grad():
            return judge.features(images.to(device)).cpu()

    return Fidelity(features, features(renders))
