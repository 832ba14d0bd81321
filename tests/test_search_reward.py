from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from festina.errors import FestinaError
from festina.metrics.judge import Judge
from festina.metrics.reward import ClipReward, JudgeReward, weights_fingerprint

CAPTION = "a small red circle on a white background"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in letters + [f"{letter}</w>" for letter in letters]:
        vocabulary[letter] = len(vocabulary)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 64, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    processor = CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_clip_reward_is_the_cosine_of_the_two_embeddings(clip_folder: Path) -> None:
    reward = ClipReward(clip_folder)
    levels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    images = levels / 255
    prompts = ["red circle", "a blue square " * 30]
    scores = reward(images, prompts)
    assert scores.shape == (2,)
    model = reward.model
    # 32 x 32 pictures are not resized, only normalised by CLIP's means and deviations.
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    tokens = reward.processor.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, 24)
    with torch.no_grad():
        found = model(pixel_values=(images - mean) / deviation, **tokens)
    wanted = (found.image_embeds * found.text_embeds).sum(1)
    assert torch.allclose(scores, wanted, atol=1e-5)


def test_clip_fingerprint_follows_the_weights(clip_folder: Path, tmp_path: Path) -> None:
    reward = ClipReward(clip_folder)
    assert ClipReward(clip_folder).fingerprint == reward.fingerprint
    with torch.no_grad():
        reward.model.visual_projection.weight[0, 0] += 1
    reward.model.save_pretrained(tmp_path)
    reward.processor.save_pretrained(tmp_path)
    assert ClipReward(tmp_path).fingerprint != reward.fingerprint


def test_a_missing_clip_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FestinaError, match="give a folder that holds both"):
        ClipReward(tmp_path)


def test_clip_wants_one_prompt_per_picture(clip_folder: Path) -> None:
    with pytest.raises(FestinaError, match="one prompt per picture"):
        ClipReward(clip_folder)(torch.rand(2, 3, 32, 32), ["one"])


def test_judge_reward_is_the_judges() -> None:
    torch.manual_seed(0)
    judge = Judge(width=4, features=8).eval()
    reward = JudgeReward(judge)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(reward(images, [CAPTION, CAPTION]), judge.reward(images, [CAPTION, CAPTION]))
    assert reward.fingerprint == weights_fingerprint(judge)
    with torch.no_grad():
        judge.heads["count"].bias[0] += 1
    assert JudgeReward(judge).fingerprint != reward.fingerprint


def test_fingerprint_sees_type_and_shape() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(layer.weight)
    wide = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(wide.weight)
    prints = {weights_fingerprint(layer), weights_fingerprint(wide), weights_fingerprint(wide.bfloat16())}
    assert len(prints) == 3


def test_weights_that_are_not_in_memory_have_no_fingerprint() -> None:
    with pytest.raises(FestinaError, match="not in memory"):
        weights_fingerprint(torch.nn.Linear(2, 2, device="meta"))
