"""Random-weight pipelines, saved in the ordinary diffusers directory format; tiny ones for tests.

The real classes with small numbers: compression ratios, latent channels and packing stay real, so that size and
frame rules are tested as they are. Everything is built offline, in a second, with fixed seeds. `scale="full"` has the
published sizes, for benchmarks on a GPU.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DECODER_0_9_0: dict[str, Any] = {
    "decoder_block_out_channels": (8, 8, 16, 16),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
_DECODER_0_9_1: dict[str, Any] = {
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_inject_noise": (False, False, False, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
_DYNAMIC: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
"""Noise levels of the first LTX-Video checkpoints; the later ones leave them to the pipeline."""
_TEXT = ["a red fox in the snow", "the quick brown fox jumps over the lazy dog", "0123456789", "um gato toca piano"] * 8


ZIMAGE: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "text": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        "transformer": {
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 32,
            "axes_dims": [8, 4, 4],
        },
        "vae": {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4},
    },
    "full": {
        "text": {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "transformer": {},
        "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
    },
}


def build_zimage(folder: Path, *, scale: str = "tiny", device: str = "cpu", dtype: str = "float32") -> Path:
    """A Z-Image pipeline: 16 latent channels, 8x8 pixels a latent, 2x2 latents a token. Tiny: about 2 MB, full: 20 GB."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    sizes = ZIMAGE[scale]
    with _seeded(0, device=device, dtype=dtype):
        tokenizer = _qwen_tokenizer()
        text = Qwen3Model(Qwen3Config(**{"vocab_size": len(tokenizer), **sizes["text"]})).eval()
        transformer = ZImageTransformer2DModel(**{"axes_lens": [1024, 512, 512], **sizes["transformer"]})
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token, std=0.02)  # uninitialised memory otherwise
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            **sizes["vae"],
        )
        pipe = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            transformer=transformer,
        )
    pipe.save_pretrained(folder)
    return folder


def build_ltx_video(folder: Path, *, timestep_conditioning: bool = False, cls: str = "LTXPipeline") -> Path:
    """An LTX-Video pipeline of about 1.5 MB: 32x32 pixels and 8 frames a latent."""
    import diffusers
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    with _seeded(1):
        tokenizer = _t5_tokenizer()
        text = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        ).eval()
        transformer = LTXVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        )
        vae = AutoencoderKLLTXVideo(
            latent_channels=16,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=(1, 1, 1, 1, 1),
            **(_DECODER_0_9_1 if timestep_conditioning else _DECODER_0_9_0),
        )
        pipe = getattr(diffusers, cls)(
            scheduler=FlowMatchEulerDiscreteScheduler(**(_DYNAMIC if cls == "LTXPipeline" else {})),
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            transformer=transformer,
        )
    pipe.save_pretrained(folder)
    return folder


def poison(folder: Path, component: str) -> None:
    """Put NaN in the first weight of a saved component."""
    import torch
    from safetensors.torch import load_file, save_file

    path = next((folder / component).glob("*.safetensors"))
    state = load_file(path)
    first = next(name for name, value in state.items() if value.is_floating_point())
    state[first] = torch.full_like(state[first], float("nan"))
    save_file(state, path, metadata={"format": "pt"})


def as_hub_cache(folder: Path, cache: Path, repo: str, *, revision: str = "a" * 40) -> Path:
    """Lay `folder` out as the hub's cache does; returns the snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / revision
    for source in sorted(p for p in folder.rglob("*") if p.is_file()):
        target = snapshot / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(revision)
    return snapshot


@contextlib.contextmanager
def _seeded(seed: int, *, device: str = "cpu", dtype: str = "float32") -> Iterator[None]:
    """Modules made inside have these random weights, on this device; the global generator is left as it was."""
    import torch

    before = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _qwen_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(raw.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in letters] + [(f"▁{c}", -3.5) for c in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)
