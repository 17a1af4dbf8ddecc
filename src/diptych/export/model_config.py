"""The `config.json` from which transformers.js and fastembed load the graphs."""

from collections.abc import Sequence
from typing import Any

from diptych.images.transforms import height_width
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
