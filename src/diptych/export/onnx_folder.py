"""Write a bundle as a folder of ONNX graphs that other libraries load: transformers.js, fastembed, optimum, ONNX Runtime.

    config.json, preprocessor_config.json    Hugging Face's configs
    tokenizer.json, tokenizer_config.json    Hugging Face's tokenizer files, unless the format cannot express the tokenizer
    onnx/vision_model.onnx                   pixel_values -> image_embeds
    onnx/text_model.onnx                     input_ids, attention_mask -> text_embeds
    diptych/config.json, tokenizer.json      config and tokenizer, so that Diptych can use the folder like the bundle;
                                             `tokenizer.model` for a sentencepiece model
    README.md, example.py, example.mjs       model card and examples

The files are written to a temporary folder, read back and compared with the bundle. Only then is the folder renamed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, assert_never

from jaxtyping import Float32, UInt8
from numpy import ndarray

from diptych.bundle.checksums import seal
from diptych.bundle.folder import Bundle, whole_folder
from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.bundle.processor import processor_config
from diptych.core.errors import ConfigError, ImageError
from diptych.core.extras import missing_extra
from diptych.core.files import sha256_of
from diptych.core.precision import GraphPrecision
from diptych.core.sample import ImageInput
from diptych.core.settings import to_plain
from diptych.export.comparison import (
    TowerComparison,
    check_ids,
    compare_images,
    compare_texts,
    draw_images,
    sample_texts,
)
from diptych.export.examples import javascript_example, python_example
from diptych.export.graphs import OPSET, as_float32, data_path, write_image_graph, write_text_graph
from diptych.export.model_config import model_config
from diptych.export.onnx_card import onnx_card
from diptych.export.quantize import to_fp16, to_int8
from diptych.export.report import OnnxReport, check_deviation, lower_cosine
from diptych.export.shareable import shareable
from diptych.export.speed import Speed, measure_speed
from diptych.images.decode import describe
from diptych.images.transforms import PixelConfig
from diptych.inference.embedder import Embedder
from diptych.models.config import STAGED
from diptych.runtime.onnx_config import ONNX_FORMAT, graph_names, tokenizer_path
from diptych.runtime.onnx_folder import load_onnx
from diptych.runtime.towers import normalization_table, normalize
from diptych.tokenizers.hugging_face import write_tokenizer_files
from tokenizers import Tokenizer as Engine

Pixels: TypeAlias = UInt8[ndarray, "3 H W"]

_BATCH = 8
"""Number of images per batch for the calibration of int8."""
_HELD_OUT = 4
"""One in this many images is excluded from int8 calibration and used for the comparison instead."""
_PLAIN_TEXTS = ("", "a photo of a dog", "Two  children,\n2 dogs: it's <end>!")
_MAX_COMPARED = 64
"""Maximum number of user-supplied images in the comparison."""


def export_onnx(
    bundle: Bundle,
    folder: Path,
    *,
    precision: GraphPrecision = "fp32",
    force: bool = False,
    images: Sequence[ImageInput] = (),
    on_error: Callable[[str, ImageError], None] | None = None,
) -> OnnxReport:
    """Export a bundle to a folder of ONNX graphs, read the folder back, and compare it with the bundle on images and texts.

    Args:
        bundle: the bundle.
        folder: the folder to create. If it exists, it must be empty.
        precision: precision of the weights in the graphs. int8 quantization of a convolutional image tower is static, so it
            needs `images` to measure the ranges of the activations.
        force: whether to write fp16 or int8 graphs even if the cosine similarity to fp32 is below 0.99. Embeddings that are NaN
            are refused anyway.
        images: typical images. Up to 64 of them are used for the comparison, in addition to drawn ones. For int8, one in four
            is used for the comparison and the others for calibration; fewer than four are used for both.
        on_error: called with (name, error) for each image that cannot be read; it is then skipped. Default: raise.

    Returns:
        The sizes of the files, the differences from the bundle, and the speed.

    Raises:
        ConfigError: the folder is not empty, an extra is not installed, ONNX cannot express the model, int8 has no `images`
            although it needs them, or fp16 or int8 deviates too much from fp32.
        BundleError: the folder cannot be written, or the fp32 graphs differ from the bundle by more than 1e-4.
        ImageError: an image cannot be read and `on_error` is None, or none of the images can be read.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists and is not empty; choose another --out")
    if precision == "int8" and isinstance(bundle.config.image, STAGED) and not images:
        raise ConfigError(
            "int8 needs images to calibrate a convolutional image tower: name a folder of typical ones with --pictures, or use "
            "--precision fp16"
        )
    _check_extra()
    bundle = _in_float32(bundle)
    embedder = Embedder(bundle, precision="fp32")
    given = _readable(embedder, images, on_error)
    calibration, compared = _split(given) if precision == "int8" else ([], given)
    pixels = [*(embedder.pixels(image) for image in draw_images()), *compared[:_MAX_COMPARED]]
    with whole_folder(folder) as tmp:
        _write_graphs(bundle, tmp, precision=precision, calibration=calibration)
        has_tokenizer = _write_files(bundle, tmp, precision=precision)
        checksums = _checksums(tmp, tokenizer_path(bundle.config))
        _write_config(bundle, tmp, precision=precision, checksums=checksums, min_cosine=None)
        result = _compared(embedder, pixels, tmp)
        check_deviation(result.images, result.texts, precision=precision, force=force, folder=folder)
        if has_tokenizer:
            _check_tokenizer(bundle, tmp)
        cosine = None if precision == "fp32" else lower_cosine(result.images, result.texts)
        _write_config(bundle, tmp, precision=precision, checksums=checksums, min_cosine=cosine)
        _write_card(bundle, tmp, precision=precision, min_cosine=cosine)
        return OnnxReport(
            folder=folder,
            precision=precision,
            opset=OPSET,
            files=_sizes(tmp),
            images=result.images,
            texts=result.texts,
            has_tokenizer=has_tokenizer,
            torch=measure_speed(embedder, pixels),
            onnxruntime=result.speed,
        )


def _readable(
    embedder: Embedder, images: Sequence[ImageInput], on_error: Callable[[str, ImageError], None] | None
) -> list[Pixels]:
    """The transformed images.

    Raises:
        ImageError: an image cannot be read and `on_error` is None, or none of the images can be read.
    """
    pixels, errors = list[Pixels](), list[ImageError]()
    for image in images:
        try:
            pixels.append(embedder.pixels(image))
        except ImageError as error:
            if on_error is None:
                raise
            on_error(describe(image), error)
            errors.append(error)
    if errors and not pixels:
        raise ImageError(f"none of the {len(errors)} images can be read; the first: {errors[0]}")
    return pixels


def _split(given: list[Pixels]) -> tuple[list[Pixels], list[Pixels]]:
    """Images for calibration, and every fourth image for the comparison. Fewer than four images are used for both."""
    if len(given) < _HELD_OUT:
        return given, given
    return [image for i, image in enumerate(given) if i % _HELD_OUT], given[::_HELD_OUT]


class _Measured(NamedTuple):
    images: TowerComparison
    texts: TowerComparison
    speed: Speed


def _compared(embedder: Embedder, pixels: Sequence[Pixels], folder: Path) -> _Measured:
    """Read a folder back, compare it with the model, and measure its speed. On return, no file of the folder is open."""
    theirs = Embedder(load_onnx(folder, verify="full"))
    return _Measured(
        images=compare_images(embedder, theirs, pixels),
        texts=compare_texts(embedder, theirs, sample_texts(embedder.bundle.tokenizer)),
        speed=measure_speed(theirs, pixels),
    )


def _check_extra() -> None:
    """Check that the packages that write graphs are installed.

    Raises:
        ConfigError: one of them is not installed.
    """
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            error = ModuleNotFoundError(name=name)
            raise missing_extra(error, "the export to ONNX") or error


def _in_float32(bundle: Bundle) -> Bundle:
    """The bundle with its model in float32, in evaluation mode and on the CPU. The model is copied only if necessary."""
    model = as_float32(bundle.model)
    return bundle if model is bundle.model else replace(bundle, model=model, known_identity=bundle.identity)


def _write_graphs(bundle: Bundle, folder: Path, *, precision: GraphPrecision, calibration: Sequence[Pixels]) -> None:
    metadata, tokenizer = {"diptych_identity": bundle.identity, "precision": precision}, bundle.tokenizer
    (folder / "onnx").mkdir()
    full = folder / "onnx/vision_model.onnx", folder / "onnx/text_model.onnx"
    write_image_graph(bundle.model, full[0], metadata=metadata)
    write_text_graph(
        bundle.model,
        full[1],
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        stops_at_end=tokenizer.stops_at_end,
        metadata=metadata,
    )
    match precision:
        case "fp32":
            return
        case "fp16":
            to_fp16(full[0])
            to_fp16(full[1])
        case "int8":
            to_int8(full[0], calibration=_batches(calibration, bundle.config.pixels))
            to_int8(full[1])
        case _:
            assert_never(precision)
    for graph in full:
        graph.unlink()
        data_path(graph).unlink(missing_ok=True)


def _batches(pixels: Sequence[Pixels], config: PixelConfig) -> Iterator[Float32[ndarray, "B 3 H W"]]:
    """Batches of normalized pixels."""
    table = normalization_table(config)
    for start in range(0, len(pixels), _BATCH):
        yield normalize(pixels[start : start + _BATCH], table)


def _write_files(bundle: Bundle, folder: Path, *, precision: GraphPrecision) -> bool:
    """Write the files for other libraries, and return whether they include a tokenizer."""
    config, tokenizer = bundle.config, bundle.tokenizer
    graphs = graph_names(precision)
    external = [Path(graph).name for graph in graphs if data_path(folder / graph).is_file()]
    _write_json(folder / "config.json", model_config(config, tokenizer, dtype=precision, external_data=external))
    _write_json(folder / "preprocessor_config.json", processor_config(config))
    (folder / "diptych").mkdir()
    tokenizer.save(folder / tokenizer_path(config))
    has_tokenizer = write_tokenizer_files(tokenizer, folder)
    example = python_example(config, tokenizer, graphs=graphs)
    (folder / "example.py").write_text(example, encoding="utf-8")
    if has_tokenizer:
        (folder / "example.mjs").write_text(javascript_example(dtype=precision), encoding="utf-8")
    return has_tokenizer


def _checksums(folder: Path, tokenizer: str) -> dict[str, str]:
    """The SHA-256 of the graphs and of the tokenizer, by path within the folder."""
    checked = [*sorted(path.relative_to(folder).as_posix() for path in (folder / "onnx").iterdir()), tokenizer]
    return {name: sha256_of(folder / name) for name in checked}


def _write_config(
    bundle: Bundle,
    folder: Path,
    *,
    precision: GraphPrecision,
    checksums: dict[str, str],
    min_cosine: float | None,
) -> None:
    """Write Diptych's own config, without private metadata."""
    bias, (identity, *aliases) = bundle.model.logit_bias, bundle.identities()
    content = {
        "onnx_format": ONNX_FORMAT,
        "precision": precision,
        "opset": OPSET,
        "model": to_plain(bundle.config),
        "logit_scale": bundle.logit_scale,
        "logit_bias": None if bias is None else bias.item(),
        "identity": identity,
        "aliases": aliases,
        "files": checksums,
        "metrics": shareable(bundle.metrics),
        "origin": shareable(bundle.origin),
        "min_cosine": min_cosine,
    }
    _write_json(folder / ONNX_CONFIG, seal(content))


def _write_card(bundle: Bundle, folder: Path, *, precision: GraphPrecision, min_cosine: float | None) -> None:
    cosine = {} if min_cosine is None else {"smallest cosine to fp32": f"{min_cosine:.4f}"}
    facts = {**cosine, **shareable(bundle.origin)}
    card = onnx_card(bundle.config, precision=precision, opset=OPSET, graphs=graph_names(precision), facts=facts)
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def _check_tokenizer(bundle: Bundle, folder: Path) -> None:
    """Check that `tokenizer.json` gives the same ids as the bundle's tokenizer.

    Raises:
        BundleError: the ids differ.
    """
    texts = [*_PLAIN_TEXTS, " ".join(["dog"] * 2 * bundle.tokenizer.context_length)]
    engine = Engine.from_file(str(folder / "tokenizer.json"))
    check_ids([found.ids for found in engine.encode_batch(texts)], bundle.tokenizer.encode(texts), texts)


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
