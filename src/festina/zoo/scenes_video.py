"""`scenes-video`: a Latte transformer (arXiv 2401.03048) that draws moving scenes, grown from the one of `scenes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler, LattePipeline, LatteTransformer3DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from festina.metrics.video_judge import VIDEO_HEADS, moving_targets
from festina.zoo.components import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
)
from festina.zoo.family import Conditions, Family, TrainSettings
from festina.zoo.loading import load
from festina.zoo.motion import FRAMES, render_moving, sample_moving_scenes
from festina.zoo.scenes import velocity

TEXT_TOKENS = 120
"""Length to which the stock pipeline pads every caption."""

_NEARLY_NOISE = 860
"""From this time on a video hardly shows where its object moves, and only the caption tells."""

_LEAN = 0.75
"""Share of the videos of training that move to the left or up. Were these as many as the others, an object would be
expected in the middle in every frame: neither the number of the frame nor the word of the direction would tell anything
by itself, and the denoiser would not learn what both tell together."""

_GROWN_FROM = (0, 1, 3, 5, 7)
"""Blocks of the transformer of `scenes` that the spatial blocks begin with."""


class ScenesVideo(Family):
    """Five pairs of a spatial and a temporal block, 192 wide, 8 frames of 64 tokens; guidance in one batched call."""

    name = "scenes-video"
    settings = TrainSettings(scenes=12_000, text_steps=400, denoiser_steps=4_900, denoiser_batch=12, judge_steps=900)
    heads: Mapping[str, tuple[str, ...]] = VIDEO_HEADS
    # The class draws 16 frames of 512 x 512.
    call: Mapping[str, Any] = MappingProxyType({"height": 64, "width": 64, "video_length": FRAMES})

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer(("moving", "up", "down"))
        self.scheduler: DPMSolverMultistepScheduler = build_scheduler()

    def sample(self, count: int, seed: int) -> Sequence[Any]:
        return sample_moving_scenes(count, seed, lean=_LEAN)

    def render(self, scenes: Sequence[Any], seed: int) -> Tensor:
        return render_moving(scenes, seed)

    def targets(self, scenes: Sequence[Any]) -> Mapping[str, Tensor]:
        return moving_targets(scenes)

    def denoiser(self) -> nn.Module:
        transformer = LatteTransformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            # The second half is the learned variance that the stock pipeline expects and throws away.
            out_channels=2 * LATENT_CHANNELS,
            num_layers=len(_GROWN_FROM),
            cross_attention_dim=192,
            attention_bias=True,
            sample_size=LATENT_SIZE,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=TEXT_WIDTH,
            video_length=FRAMES,
        )
        _grow(transformer, load("scenes").transformer)
        # The backward pass of the fused attention is several times slower than plain products on a CPU.
        for module in transformer.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(AttnProcessor())
        return cast(nn.Module, transformer)

    def text_encoders(self) -> nn.ModuleDict:
        encoder = build_text_encoder(len(self.tokenizer))
        state = load("scenes").text_encoder.state_dict()
        own = encoder.state_dict()
        for name, value in state.items():
            # The vocabulary is that of `scenes` with a few words behind it.
            own[name][: len(value)] = value
        encoder.load_state_dict(own)
        return nn.ModuleDict({"t5": encoder})

    def read(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self._tokens(encoders, captions)
        tokens = encoders["t5"](ids, attention_mask=mask)[0]
        return tokens[mask.bool()], mask.nonzero()[:, 0]

    def conditions(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
        ids, mask = self._tokens(encoders, captions)
        # The stock pipeline sets the padding of captions to zero, leaves that of the empty one, which it guides away
        # from, as it is, and lets both be attended to.
        empty = torch.tensor([not caption for caption in captions], device=mask.device)
        kept = mask.bool() | empty[:, None]
        return {"encoder_hidden_states": encoders["t5"](ids, attention_mask=mask)[0] * kept[..., None]}

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        # Every other video is seen nearly as noise.
        count = len(self.scheduler.alphas_cumprod)
        lowest = torch.where(torch.arange(len(clean)) % 2 == 0, 0, _NEARLY_NOISE)
        times = lowest + (torch.rand(len(clean), generator=generator) * (count - lowest)).long()
        return velocity(self.scheduler, clean, times, generator)

    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        words = conditions["encoder_hidden_states"]
        if times[0] % 2:
            # For a single prompt the stock pipeline cuts the padding off; so every other batch goes without most of it.
            # All padding of one caption is alike.
            words = torch.cat([words, words[:, -1:].expand(-1, TEXT_TOKENS - words.shape[1], -1)], 1)
        predicted: Tensor = denoiser(noisy, times, words, return_dict=False)[0]
        return predicted[:, :LATENT_CHANNELS]

    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> LattePipeline:
        return LattePipeline(
            tokenizer=self.tokenizer,
            text_encoder=encoders["t5"],
            vae=vae,
            transformer=denoiser,
            scheduler=self.scheduler,
        )

    def _tokens(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = next(encoders.parameters()).device
        longest = self.tokenizer.model_max_length + 4
        text = self.tokenizer(list(captions), padding="max_length", max_length=longest, return_tensors="pt")
        return text.input_ids.to(device), text.attention_mask.to(device)


def _grow(video: nn.Module, picture: nn.Module) -> None:
    """Start from a transformer of pictures: no frame sees another one yet, and every frame is drawn as a picture would
    be but for the embedding of its number, which the class adds."""
    state, known = video.state_dict(), picture.state_dict()
    for name, value in known.items():
        if name in state and state[name].shape == value.shape and not name.startswith("transformer_blocks."):
            state[name] = value
    for index, source in enumerate(_GROWN_FROM):
        for name in [name for name in state if name.startswith(f"transformer_blocks.{index}.")]:
            state[name] = known[name.replace(f"transformer_blocks.{index}.", f"transformer_blocks.{source}.", 1)]
    for name in ("proj_out.weight", "proj_out.bias"):
        # Within a patch channels run fastest; the new half of them stays zero.
        wide = state[name].view(4, 2 * LATENT_CHANNELS, *state[name].shape[1:]).zero_()
        wide[:, :LATENT_CHANNELS] = known[name].view(4, LATENT_CHANNELS, *known[name].shape[1:])
    for name, value in state.items():
        if name.startswith("temporal_transformer_blocks.") and (".attn1.to_out." in name or ".ff.net.2." in name):
            value.zero_()
    video.load_state_dict(state)
