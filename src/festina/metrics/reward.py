"""Rewards: how well a picture or a video shows its prompt, as one number each that a search maximises."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from festina.errors import FestinaError

if TYPE_CHECKING:
    from festina.metrics.judge import Judge
    from festina.metrics.video_judge import VideoJudge


class Reward(Protocol):
    """Scores pictures or videos against their prompts; higher is better.

    Attributes:
        name: short name, such as "judge" or "clip".
        fingerprint: hash of all that decides the scores; evaluations with another fingerprint are not mixed.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (batch,) of pictures (batch, 3, height, width) in [0, 1] or videos (batch, frames, 3, height, width),
        on whatever device they lie."""


def scores_of(reward: Reward, images: Tensor, prompts: Sequence[str], batch: int) -> tuple[float, ...]:
    """The scores of any number of pictures or videos, judged in batches.

    Args:
        reward: the judge.
        images: pictures (count, 3, height, width) or videos (count, frames, 3, height, width) in [0, 1].
        prompts: the prompt of each.
        batch: how many are judged at a time.

    Raises:
        FestinaError: the reward gave something else than one finite number each.
    """
    scores: list[float] = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        found = reward(images[part], prompts[part])
        if found.shape != (len(prompts[part]),) or not bool(found.isfinite().all()):
            raise FestinaError(
                f"the reward {reward.name!r} gave {found.tolist()!s:.80} for {len(prompts[part])} pictures; wanted one "
                f"finite number each. Pictures that are not finite come from overflow: try bfloat16 or float32."
            )
        scores += found.tolist()
    return tuple(scores)


class JudgeReward:
    """A judge of what the shipped pipelines draw as a reward; see `festina.metrics.judge.Judge.reward`.

    Args:
        judge: of pictures, or of the videos of `scenes-video`.
    """

    name = "judge"

    def __init__(self, judge: Judge | VideoJudge) -> None:
        self.judge = judge
        self.fingerprint = weights_fingerprint(judge)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        device = next(self.judge.parameters()).device
        return self.judge.reward(images.to(device), list(prompts))


class ClipReward:
    """CLIP score: cosine similarity of a picture's and its prompt's embedding (arXiv 2103.00020), in [-1, 1].

    Pictures are scored with 8 bits a channel, as they would be saved. Prompts are cut to the length the model reads (77
    tokens for OpenAI's models). A video's score is the mean over its frames, each scored as a picture: it does not see
    motion.

    Args:
        model: folder or Hub id of a CLIP model with its processor.
        device: where it runs.

    Raises:
        FestinaError: there is no such model, or it cannot be loaded.
    """

    name = "clip"

    def __init__(self, model: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self.model = CLIPModel.from_pretrained(model).to(device).eval()
            self.processor = CLIPProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise FestinaError(
                f"cannot load a CLIP model and its processor from {str(model)!r} "
                f"({str(error).splitlines()[0][:200]}); give a folder that holds both, or a Hub id such as "
                f"'openai/clip-vit-base-patch32' while online."
            ) from None
        resizing = self.processor.image_processor
        described = f"{type(resizing).__name__} {resizing.to_json_string()}\n{weights_fingerprint(self.model)}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(images) != len(prompts):
            raise FestinaError(f"{len(images)} pictures but {len(prompts)} prompts; give one prompt per picture.")
        if images.ndim == 5:
            frames = images.shape[1]
            every = [prompt for prompt in prompts for _ in range(frames)]
            return self(images.flatten(0, 1), every).view(-1, frames).mean(1)
        inputs = self.processor(
            text=list(prompts),
            images=list((images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)),
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.model.device)
        found = self.model(**inputs)
        scores: Tensor = nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).float().cpu()
        return scores


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) over name, type, shape and bytes of every tensor in a module's state.

    It reads all weights once: about a second per gigabyte.

    Raises:
        FestinaError: a tensor has no data in memory (offloaded to the meta device).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise FestinaError(
                f"the weights {name!r} of {type(module).__name__} are not in memory; load the model without "
                f"sequential offloading."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
