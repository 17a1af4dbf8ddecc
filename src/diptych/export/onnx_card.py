"""The model card (README.md) of an ONNX folder."""

from collections.abc import Mapping
from typing import Any

from diptych.bundle.card import describe_image_tower, describe_text_tower, usage
from diptych.bundle.describe_text import describe_preparation
from diptych.bundle.licenses import non_commercial_note
from diptych.images.transforms import height_width, size_name
from diptych.models.config import CLIPConfig, TextTowerConfig

_HASHING = """Hugging Face's format cannot express the hashing tokenizer, so this folder has no `tokenizer.json`, and
transformers.js cannot encode texts. `example.py` contains the few lines that compute the ids."""
_SENTENCEPIECE = """Hugging Face's format cannot express a sentencepiece model exactly, so this folder has no `tokenizer.json`,
and transformers.js cannot encode texts. `example.py` reads `diptych/tokenizer.model` with the `sentencepiece` library."""
_CLEANED = """, except for texts that Diptych repairs before it
tokenizes them (texts with encoding errors such as `cafÃ©`, ligatures, full-width letters, terminal escapes, or HTML entities
other than `&amp; &lt; &gt; &quot; &#39; &apos; &nbsp;`)"""
_CLIP_BPE = """`tokenizer.json` gives the same ids as the model's tokenizer, except for texts that Diptych repairs before it
tokenizes them (texts with encoding errors such as `cafÃ©`, ligatures, full-width letters, terminal escapes, or HTML entities
other than `&amp; &lt; &gt; &quot; &#39; &apos; &nbsp;`), and for texts with more than three tokens such as `<end_of_text>` in
sequence after a symbol."""
_EXACT = "`tokenizer.json` gives the same ids as the model's tokenizer."
_RECTANGLE = """The input of this model is not square. `example.py` scales an image until it covers the input and crops the
center, as in training. `preprocessor_config.json` cannot express this, so programs that use it resize the image to the input
size, which changes the aspect ratio."""

_BORDERS = """The images of this model get borders, which `example.py` adds. `preprocessor_config.json` cannot express this, so
programs that use it resize the image to the input size, which changes the aspect ratio."""


def onnx_card(
    config: CLIPConfig, *, precision: str, opset: int, graphs: tuple[str, str], facts: Mapping[str, Any]
) -> str:
    """Return the content of README.md.

    Args:
        config: the config of the model.
        precision: precision of the weights in the graphs.
        opset: version of the ONNX operators.
        graphs: paths of the image graph and the text graph within the folder.
        facts: facts about the export and the origin of the model, by name; each one becomes a line.
    """
    kind, (height, width) = config.text.tokenizer, height_width(config.image.image_px)
    has_tokenizer = kind not in {"hashing", "sentencepiece"}
    known = {"hashing": _HASHING, "sentencepiece": _SENTENCEPIECE, "clip-bpe": _CLIP_BPE}
    tokenizer = known.get(kind, _pretrained(config.text) if kind == "pretrained" else _EXACT)
    note = non_commercial_note(facts)
    lines = [
        "# A CLIP model as ONNX graphs",
        "",
        f"- image tower: {describe_image_tower(config.image)}; pictures of {size_name(config.image.image_px)} px",
        f"- text tower: {describe_text_tower(config.text)}",
        f"- embeddings: {config.embed_dim} numbers, of unit length",
        f"- precision: {precision}; opset {opset}",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
        *([] if note is None else ["", f"**Not for commercial use:** {note}."]),
        "",
        "## Files",
        "",
        "| file | content |",
        "|---|---|",
        f"| `{graphs[0]}` | `pixel_values` (normalized, float32) to `image_embeds` |",
        f"| `{graphs[1]}` | `input_ids`, `attention_mask` (int64) to `text_embeds` |",
        "| `onnx/*.onnx_data` | the weights of the graph with the same name |",
        "| `preprocessor_config.json` | resizing, cropping and normalization, which are not part of the graph |",
        *(["| `tokenizer.json`, `tokenizer_config.json` | tokenizer: texts to ids |"] if has_tokenizer else []),
        "| `config.json` | sizes, for transformers.js and other libraries |",
        "| `diptych/` | config and tokenizer for Diptych, with checksums of the graphs |",
        f"| `example.py`{', `example.mjs`' if has_tokenizer else ''} | rank texts for a picture |",
        "",
        *tokenizer.splitlines(),
        "",
        "To encode a text, the model",
        "",
        *(f"- {step}" for step in describe_preparation(config.text)),
        *(["", *_RECTANGLE.splitlines()] if height != width and config.pixels.resize == "crop" else []),
        *(["", *_BORDERS.splitlines()] if config.pixels.resize == "pad" else []),
        "",
        "## Use",
        "",
        "```bash",
        'python example.py photo.jpg "a dog in the snow" "a red car"    # onnxruntime, without PyTorch',
        *(
            ['node example.mjs photo.jpg "a dog in the snow" "a red car"     # transformers.js']
            if has_tokenizer
            else []
        ),
        "```",
        "",
        *usage(),
    ]
    return "\n".join(lines) + "\n"


def _pretrained(text: TextTowerConfig) -> str:
    """Return the note about a `tokenizer.json` of another model, to which the text preparation was prepended."""
    exceptions = _CLEANED if text.preparation.clean != "none" else ""
    return (
        "`tokenizer.json` is the file of the original model, with the text preparation below added. It gives the same\n"
        f"ids as the model's tokenizer{exceptions}."
    )
