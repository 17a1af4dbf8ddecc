"""Hugging Face's configs of a model: `config.json`, and `preprocessor_config.json` with the evaluation transform."""

from collections.abc import Sequence
from typing import Any

from diptych.images.transforms import FILTERS, height_width
from diptych.models.config import CLIPConfig
from diptych.tokenizers.protocol import Tokenizer


def model_config(
    config: CLIPConfig, tokenizer: Tokenizer, *, dtype: str, external_data: Sequence[str]
) -> dict[str, Any]:
    """Return the content of `config.json`, from which transformers.js and fastembed load the graphs.

    Args:
        config: the config of the model.
        tokenizer: its tokenizer.
        dtype: the data type by which transformers.js selects the graph files: `fp32`, `fp16` or `int8`.
        external_data: file names of the graphs that have a data file, which transformers.js must also fetch.
    """
    height, width = height_width(config.image.image_px)
    return {
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "pad_token_id": tokenizer.pad_id,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": config.text.vocab_size,
            "max_position_embeddings": config.text.context_length,
            "projection_dim": config.embed_dim,
            "bos_token_id": tokenizer.start_id,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.pad_id,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": height if height == width else [height, width],
            "num_channels": 3,
            "projection_dim": config.embed_dim,
        },
        "transformers.js_config": {
            "dtype": dtype,
            "use_external_data_format": dict.fromkeys(external_data, True),
        },
    }


def processor_config(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: resize the short side, crop the center, rescale, normalize.

    Hugging Face's processors cannot resize an image so that it covers a rectangle. For a model with a non-square input, the
    content resizes to the input size instead, which changes the aspect ratio.
    """
    height, width = height_width(config.image.image_px)
    is_square = height == width
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "do_center_crop": is_square,
        "size": {"shortest_edge": height} if is_square else {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "resample": int(FILTERS[config.pixels.interpolation]),
        "rescale_factor": 1 / 255,
        "image_mean": list(config.pixels.mean),
        "image_std": list(config.pixels.std),
    }
