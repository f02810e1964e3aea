"""Tiny twins: random models of the paper's architectures, built from a seed in about a second, for tests and dry runs.

`tiny-qwen-vl`  Qwen2.5-VL: windowed vision tower, patches merged two by two, rotary positions on three axes.
`tiny-internvl` InternVL3: pictures cut into tiles with a thumbnail, pixel shuffle, a projector, a Qwen2 language model.
`tiny-llama`    DeepSeek-R1-Distill-Llama: llama3 rotary scaling, a head of its own, and a chat template that opens the thought for
                the assistant and leaves the thoughts of earlier turns out.

Each is what the large model is in kind, from layer types to special tokens and chat template, so that what passes here fails there
for its size alone. The templates are written for the twins after what those of the large models do. A builder writes a folder
that `transformers` loads like any other.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

SEED: Final = 20260102
SEEING: Final = frozenset({"tiny-qwen-vl", "tiny-internvl"})
QWEN_SPECIAL: Final = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
INTERN_SPECIAL: Final = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
DEEPSEEK_SPECIAL: Final = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")

# `%s` is what the model's processor writes for an image before it knows its size.
_VISION_TEMPLATE: Final = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}{{ '%s' }}{%% else %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}{{ '<|im_end|>\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
DEEPSEEK_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


def folder_name(twin: str) -> str:
    """Names the folder after this file, so that a changed definition never meets an old cache."""
    return f"{twin}-{blake2b(Path(__file__).read_bytes(), digest_size=4).hexdigest()}"


def build_qwen_vl(folder: Path) -> None:
    """Two decoder layers with heads of 16, two vision layers, the first of them windowed; an image token is 8 by 8 pixels."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(QWEN_SPECIAL)
    tokenizer.chat_template = _VISION_TEMPLATE % "<|vision_start|><|image_pad|><|vision_end|>"
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN_SPECIAL))
    config = Qwen2_5_VLConfig(
        text_config={**_decoder(tokenizer), "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
        dtype="float32",
    )
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer)
    pixels = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=pixels).save_pretrained(folder)


def build_internvl(folder: Path) -> None:
    """Two decoder layers with heads of 16, two vision layers over tiles of 16 by 16 pixels, 4 tokens each, at most 4 and a thumbnail."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = _tokenizer(INTERN_SPECIAL.values(), INTERN_SPECIAL)
    tokenizer.chat_template = _VISION_TEMPLATE % "<IMG_CONTEXT>\\n"
    config = InternVLConfig(
        text_config={**_decoder(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 4,
            "attention_bias": True,
            "initializer_range": 0.2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
        dtype="float32",
    )
    _save(folder, InternVLForConditionalGeneration, config, tokenizer)
    tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, **tiles).save_pretrained(folder)


def build_llama(folder: Path) -> None:
    """Two layers with heads of 16; input and output embeddings apart, as from 8B on."""
    from transformers import LlamaConfig, LlamaForCausalLM

    bos, eos, *_ = DEEPSEEK_SPECIAL
    tokenizer = _tokenizer(DEEPSEEK_SPECIAL, {"bos_token": bos, "eos_token": eos})
    tokenizer.chat_template = DEEPSEEK_TEMPLATE
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config = LlamaConfig(**{**_decoder(tokenizer), "rope_parameters": scaling, "bos_token_id": tokenizer.bos_token_id})
    _save(folder, LlamaForCausalLM, config, tokenizer)


def _tokenizer(special: Any, named: Any = None) -> Any:
    """The tokenizer of `tiny` with further special tokens, those in `named` also under a name of theirs."""
    from safeladder.policies.builtin import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    known = {name: token for name, token in (named or {}).items() if name in ("bos_token", "eos_token")}
    rest = {name: token for name, token in (named or {}).items() if name not in known}
    tokenizer.add_special_tokens({**known, "extra_special_tokens": list(special)})
    for name, token in rest.items():
        setattr(tokenizer, name, token)
        tokenizer.init_kwargs.setdefault("model_specific_special_tokens", {})[name] = token
    return tokenizer


def _decoder(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # far from uniform, so that a wrong position or mask shows in the log-probabilities
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def _save(folder: Path, kind: Any, config: Any, tokenizer: Any) -> None:
    import torch
    from transformers import GenerationConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = kind(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
