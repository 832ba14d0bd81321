"""Untrained parts that the shipped pipelines share: stock diffusers and transformers classes at small sizes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Mapping, Sequence

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from festina.zoo import grammar

TEXT_WIDTH = 128
LATENT_CHANNELS = 4
LATENT_SIZE = 16

CAPTION_TOKENS = 20
"""Longest caption of the grammar in tokens, with the end token."""


def grammar_words() -> list[str]:
    """Every word of a caption, once."""
    words = [*grammar.SHAPES, *grammar.COLOURS, *grammar.SIZES, *grammar.BACKGROUNDS]
    words += [word for relation in grammar.RELATIONS for word in relation.split()]
    words += ["a", "an", "on", "background", "and", "the", "to", "with"]
    return list(dict.fromkeys(words))


def build_tokenizer(more: Sequence[str] = ()) -> T5Tokenizer:
    """A T5 tokenizer that knows the grammar's words whole, and `more` behind them, and spells everything else."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -4.0) for word in grammar_words()]
    pieces += [(letter, -9.0) for letter in string.ascii_letters + string.digits + ".,;:!?'-()"]
    pieces += [(f"▁{word}", -4.0) for word in more]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=CAPTION_TOKENS)


def build_clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs join each of the grammar's words to one token, and that spells the rest."""
    start, end, word_end = "<|startoftext|>", "<|endoftext|>", "</w>"
    letters = string.ascii_lowercase + string.digits + ".,;:!?'-()"
    pieces = [start, end, *letters, *(letter + word_end for letter in letters)]
    vocabulary, merges = byte_pairs(grammar_words(), {piece: number for number, piece in enumerate(pieces)}, word_end)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CAPTION_TOKENS)


def byte_pairs(
    words: Iterable[str], vocabulary: Mapping[str, int], last: str = ""
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs that join each word to one token.

    Not learned by a trainer, because that one numbers its tokens differently in every process.

    Args:
        words: spelled in the letters of the vocabulary.
        vocabulary: tokens that exist already, with at least every letter.
        last: what the vocabulary appends to the last letter of a word.

    Returns:
        the vocabulary with the new tokens, and the pairs in the order in which they are joined.
    """
    known, ranks = dict(vocabulary), dict[tuple[str, str], int]()
    for word in dict.fromkeys(words):
        pieces = [*word[:-1], word[-1] + last]
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            # Earlier words may have joined some letters already; go on from what they leave.
            pair = min((pair for pair in pairs if pair in ranks), key=ranks.__getitem__, default=pairs[0])
            ranks.setdefault(pair, len(ranks))
            known.setdefault("".join(pair), len(known))
            place = pairs.index(pair)
            pieces[place : place + 2] = ["".join(pair)]
    return known, list(ranks)


def build_clip_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three CLIP text layers, 128 wide, for the ids of this tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=CAPTION_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Three T5 encoder layers, 128 wide."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_vae() -> AutoencoderKL:
    """64 x 64 RGB to 16 x 16 x 4 and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt's own sampler, DPM-Solver++ (2M), on the linear noise schedule, predicting v."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
    )
