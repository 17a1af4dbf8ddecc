"""Folders as google publishes SigLIP and SigLIP 2, with random weights and small tokenizers in the real layouts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentencepiece import SentencePieceTrainer

from diptych.export.comparison import draw_images
from tests import peers
from tests.parity.models import shaken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    *("a dog runs in the snow", "two red cars at night", "the old man's boat, on a lake", "photo of a cat"),
    *("ein Hund im Schnee", "деревня зимой", "雪の中の犬", "A DOG! Running?", "it's 3 o'clock; naïve café"),
]
TEXTS = [
    *(
        "a photo of a dog",
        "A Photo of a DOG, running!",
        "",
        "   two  cars\n\t",
        "It's the old man's BOAT...",
        "ÉCOLE im Schnee",
    ),
    *("雪の中の犬", "🐕 <eos> </s> <pad>", "a dog " * 60),
]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small model. The defaults have no two equal sizes."""

    image_px: int = 32
    patch_px: int = 8
    width: int = 48
    heads: int = 3
    hidden: int = 100
    text_width: int = 32
    text_heads: int = 4
    text_hidden: int = 90
    context: int = 12
    eps: float = 1e-6


def t5_tokenizer() -> Tokenizer:
    """A unigram tokenizer in T5's layout: `<pad>` 0, `</s>` 1, `<unk>` 2, and a mark before each word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def gemma_tokenizer() -> Tokenizer:
    """A BPE tokenizer in Gemma's layout: bytes for unknown characters, `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    trained.train_from_iterator([text.lower() for text in CORPUS], trainer)
    content = json.loads(trained.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return Tokenizer.from_str(json.dumps(content))


def siglip_model(sizes: Sizes, *, vocab_size: int) -> Any:
    """A random `SiglipModel` in evaluation mode."""
    depth = {"num_hidden_layers": 2, "layer_norm_eps": sizes.eps}
    vision = {"hidden_size": sizes.width, "intermediate_size": sizes.hidden, "num_attention_heads": sizes.heads}
    text = {"hidden_size": sizes.text_width, "intermediate_size": sizes.text_hidden}
    config = peers.transformers.SiglipConfig(
        vision_config={**depth, **vision, "image_size": sizes.image_px, "patch_size": sizes.patch_px},
        text_config={
            **depth,
            **text,
            "num_attention_heads": sizes.text_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": sizes.context,
            "projection_size": sizes.width,
        },
    )
    model = shaken(peers.transformers.SiglipModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-3.0)
    return model


def write_folder(folder: Path, model: Any, *, version: int) -> Path:
    """Write the files that google publishes for SigLIP (version 1) or SigLIP 2, with nothing that has its default value."""
    model.save_pretrained(folder)
    config, defaults = model.config.to_dict(), peers.transformers.SiglipConfig().to_dict()
    towers = {
        f"{name}_config": {
            "model_type": f"siglip_{name}_model",
            **{k: v for k, v in config[f"{name}_config"].items() if v != defaults[f"{name}_config"].get(k)},
        }
        for name in ("text", "vision")
    }
    _write(folder / "config.json", {"architectures": ["SiglipModel"], "model_type": "siglip", **towers})
    side = model.config.vision_config.image_size
    halves = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    processor = {
        **dict.fromkeys(("do_normalize", "do_rescale", "do_resize"), True),
        **({"do_convert_rgb": None} if version == 2 else {}),
        **halves,
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "resample": 3 if version == 1 else 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    _write(folder / "preprocessor_config.json", processor)
    tokenizer = t5_tokenizer() if version == 1 else gemma_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    names = (
        {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
        if version == 1
        else {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    )
    own = {"do_lower_case": True} if version == 1 else {"add_bos_token": False, "add_eos_token": True}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "SiglipTokenizer" if version == 1 else "GemmaTokenizer",
            "model_max_length": model.config.text_config.max_position_embeddings,
            "processor_class": "SiglipProcessor",
            **names,
            **own,
        },
    )
    _write(folder / "special_tokens_map.json", names)
    return folder


def with_sentence_pieces(folder: Path) -> Path:
    """Replace the `tokenizer.json` of version 1 by a `spiece.model` with the same special tokens."""
    (folder / "tokenizer.json").unlink()
    with (folder / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([text.lower() for text in CORPUS] * 4),
            model_writer=file,
            vocab_size=90,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return folder


def photos() -> list[Image.Image]:
    """Pictures of odd sizes."""
    first, second, third = draw_images(3)
    return [
        first.resize((61, 40)),
        second.resize((33, 97)),
        third.resize((30, 30)),
        Image.new("RGB", (1, 1), (9, 200, 3)),
    ]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
