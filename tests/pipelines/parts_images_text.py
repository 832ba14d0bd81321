"""Tokenizers and text encoders of the tiny image pipelines, all built in memory."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

import transformers
from tokenizers import pre_tokenizers, processors
from torch import nn

from festina.zoo.components import build_clip_tokenizer, build_tokenizer, byte_pairs, grammar_words
from pipelines.parts_images import seeded


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def sentence_piece(kind: type, special: Iterable[str], text: str = "", **config: Any) -> Any:
    """A Gemma or Llama tokenizer (words begin with a low line) that knows the words of the prompts and of `text`."""
    words = [*grammar_words(), *re.findall(r"\w+", text)]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.printable]
    vocabulary, merges = byte_pairs([form for word in words for form in (word, f"▁{word}")], _numbered(tokens))
    return kind(vocab=vocabulary, merges=merges, **config)


def gemma_tokenizer(text: str = "") -> Any:
    """A Gemma tokenizer, padding right as its pipelines want it."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    return sentence_piece(transformers.GemmaTokenizer, special, text, padding_side="right")


def llama_tokenizer() -> Any:
    """A Llama tokenizer with a padding token."""
    special = ("<unk>", "<s>", "</s>", "<pad>")
    return sentence_piece(transformers.LlamaTokenizer, special, pad_token="<pad>")


def byte_level(special: Iterable[str], text: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and byte pairs of a byte-level tokenizer that knows the words of the prompts and of `text`."""
    words = [*grammar_words(), *re.findall(r"\w+", text)]
    # In this alphabet Ġ stands for a space before the word.
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    return byte_pairs([form for word in words for form in (word, f"Ġ{word}")], _numbered(tokens))


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _chat_tokenizer(end: str, text: str, **markers: str) -> Any:
    special = [end, "<|im_start|>", "<|im_end|>", *markers.values()]
    # The template puts the names of the speakers between the markers.
    vocabulary, merges = byte_level(special, f"system user assistant {text}")
    return transformers.Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token=end,
        extra_special_tokens=special[1:3],
        chat_template=CHAT_TEMPLATE,
        **markers,
    )


def qwen_tokenizer(text: str = "") -> Any:
    """A Qwen tokenizer with its markers of turns and a chat template that only marks them."""
    return _chat_tokenizer("<|endoftext|>", text)


def mistral_tokenizer(text: str = "") -> Any:
    """The same with Mistral's markers of begin and end.

    Of the checkpoints' processor for texts and pictures the pipelines only use the tokenizer's part.
    """
    return _chat_tokenizer("</s>", text, bos_token="<s>", unk_token="<unk>", pad_token="<pad>")


def glm_tokenizer() -> Any:
    """A byte-level tokenizer that begins every text, the empty one too, with GLM's two markers."""
    special = ("<|endoftext|>", "[gMASK]", "<sop>")
    vocabulary, merges = byte_level(special)
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges, padding_side="left")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[(marker, vocabulary[marker]) for marker in special[1:]]
    )
    return tokenizer


def bert_tokenizer() -> Any:
    """A BERT tokenizer that knows the words of the prompts whole and spells the others."""
    letters = string.ascii_lowercase + string.digits
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokens = [*special, *grammar_words(), *letters, *(f"##{letter}" for letter in letters)]
    return transformers.BertTokenizer(vocab=_numbered(tokens), model_max_length=77)


def t5_tokenizer() -> Any:
    """The T5 tokenizer of the shipped pipelines: 20 tokens at most."""
    return build_tokenizer()


def clip_text(width: int, pooled: int = 0, tokens: int = 20) -> nn.Module:
    """A CLIP text encoder; with `pooled` the class that projects its pooled output to that width.

    Of 77 tokens for pipelines which pad to that length whatever the tokenizer says.
    """
    config = transformers.CLIPTextConfig(
        vocab_size=len(build_clip_tokenizer()),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        projection_dim=pooled or width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return seeded(lambda: kind(config), 2)


def t5_text(width: int, kind: Any = transformers.T5EncoderModel, vocabulary: int = 128) -> nn.Module:
    """A T5 (or UMT5) text encoder."""
    config = kind.config_class(
        vocab_size=vocabulary, d_model=width, d_kv=4, d_ff=8, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return seeded(lambda: kind(config), 3)


def decoder_text(kind: Any, tokenizer: Any, width: int, **config: Any) -> nn.Module:
    """A text encoder of a language model's class (Gemma 2, GLM, Qwen 3) for the ids of this tokenizer."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        # Wider than usual, so that the words matter in the hidden states.
        "initializer_range": 0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return seeded(lambda: kind(kind.config_class(**{**sizes, **config})), 4)


def qwen_vl_text(tokenizer: Any, width: int) -> nn.Module:
    """The language model for texts and pictures of Qwen-Image; its three kinds of positions share `width` / 2."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "initializer_range": 0.5,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
    )
    return seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), 4)


def mistral_text(tokenizer: Any, width: int) -> nn.Module:
    """The language model for texts and pictures of FLUX.2, of three layers."""
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.5,
            "head_dim": 4,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 4,
            "image_size": 8,
            "patch_size": 4,
        },
    )
    return seeded(lambda: transformers.Mistral3ForConditionalGeneration(config), 4)
