"""Open models in all supported formats as bundles: Diptych, open_clip and Hugging Face folders, files of weights, hub ids."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from diptych.bundle import hugging_face, hugging_face_writer, open_clip
from diptych.bundle.checksums import Verify, source_stamp
from diptych.bundle.folder import Bundle, load_bundle, whole_folder
from diptych.bundle.foreign_tokenizer import tokenizer_of
from diptych.bundle.hub import PREFIX, download
from diptych.bundle.onnx_layout import is_onnx_folder, refuse_half_export
from diptych.bundle.openai import read_openai
from diptych.bundle.weights import SUFFIXES
from diptych.core.errors import BundleError, ConfigError, OnnxExportError, unknown_name
from diptych.core.settings import read_json
from diptych.images.transforms import Pixels, height_width
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, ViTConfig
from diptych.models.resolution import at_resolution
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.protocol import Tokenizer

ExportFormat: TypeAlias = Literal["open-clip", "hugging-face"]

_WRITERS: dict[ExportFormat, tuple[Callable[[CLIP, Tokenizer, Path], None], Callable[[Path], CLIP]]] = {
    "open-clip": (open_clip.write_open_clip, open_clip.read_open_clip),
    "hugging-face": (hugging_face_writer.write_hugging_face, hugging_face.read_hugging_face),
}


def open_bundle(
    path: str | Path,
    *,
    activation: Activation | None = None,
    preset: str | None = None,
    image_px: Pixels | None = None,
    verify: Verify = "auto",
) -> Bundle:
    """Return the model at a path as a bundle, on the CPU, in evaluation mode.

    Args:
        path: a bundle, a model folder of open_clip or Hugging Face, a file of weights in OpenAI's naming (`.pt`, `.pth`,
            `.bin`, `.safetensors`), or `hf:` followed by a hub id.
        activation: the activation with which the model was trained. A file of weights may need it; other formats contain it,
            and a different value is an error.
        preset: the architecture of a file of weights; by default it is inferred from the tensors.
        image_px: image size in pixels, if it differs from the model's; position embeddings are resized.
        verify: `full` reads all files of a bundle and compares their checksums; `auto` skips a large file that was verified
            before and has the same size, times and inode. Folders of other libraries have no checksums.

    Raises:
        BundleError: there is no model at the path, it is damaged, or it has a feature that Diptych does not support.
        ConfigError: an argument is not valid or does not fit the model.
    """
    if activation is not None and activation not in get_args(Activation):
        raise ConfigError(unknown_name("activation", activation, get_args(Activation)))
    folder = download(str(path)) if str(path).startswith(PREFIX) else Path(path)
    if verify not in get_args(Verify):
        raise ConfigError(unknown_name("value of verify", verify, get_args(Verify)))
    bundle = _read(folder, str(path), activation, preset, verify)
    if activation is not None and bundle.config.text.activation != activation:
        raise BundleError(f"{path}: has {bundle.config.text.activation}, which activation {activation} contradicts")
    if image_px is not None and height_width(image_px) != height_width(bundle.config.image.image_px):
        source = None if bundle.source is None else f"{bundle.source} {height_width(image_px)}"
        bundle = replace(bundle, model=at_resolution(bundle.model, image_px), known_identity=None, source=source)
    return bundle


def export_bundle(bundle: Bundle, to: ExportFormat, folder: Path) -> None:
    """Write a folder in the format of another library, read it back, and compare the models.

    Args:
        bundle: the bundle.
        to: the format.
        folder: the folder to create; it must not exist or be empty.

    Raises:
        ConfigError: the folder is not empty, or the library does not support a feature of the model.
        BundleError: the folder cannot be written, or the model read back differs.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists and is not empty; choose another --out")
    write, read = _WRITERS[to]
    with whole_folder(folder) as tmp:
        write(bundle.model, bundle.tokenizer, tmp)
        model = read(tmp)
        _check_same(bundle.model, model, folder)
        if _saved(tokenizer_of(model.config, tmp)) != _saved(bundle.tokenizer):
            raise BundleError(
                f"{folder}: the exported tokenizer differs from the bundle's when it is read back; the export was removed"
            )


def _read(path: Path, name: str, activation: Activation | None, preset: str | None, verify: Verify) -> Bundle:
    if path.is_file() and path.suffix in SUFFIXES:
        model = read_openai(path, activation=activation, preset=preset)
        shape = "" if preset else ", class token or attention pooling, square pictures, heads by width"
        assumed = f"OpenAI's image transform{shape}"
        source = source_stamp([path], activation, preset)
        return _imported(model, name, "weights in OpenAI's naming", assumed=assumed, source=source)
    if preset is not None:
        raise ConfigError(f"{name}: --preset is only for files of weights; a model folder contains its config")
    if is_onnx_folder(path):
        raise OnnxExportError(
            f"{name}: is an ONNX export, which cannot be trained or converted; name the bundle that was exported", path
        )
    if path.is_dir():
        refuse_half_export(path, name)
    match _kind(path):
        case "open-clip":
            return _imported(open_clip.read_open_clip(path), name, "open_clip folder", folder=path)
        case "hugging-face":
            has_transform = hugging_face.read_processor(path) is not None
            lacking = "OpenAI's image transform: the folder has no preprocessor_config.json"
            return _imported(
                hugging_face.read_hugging_face(path),
                name,
                "Hugging Face folder",
                assumed=None if has_transform else lacking,
                folder=path,
            )
        case _:
            return load_bundle(path, verify=verify)


def _folder_stamp(folder: Path) -> str | None:
    return source_stamp(path for path in folder.iterdir() if path.is_file())


def _kind(folder: Path) -> ExportFormat | None:
    """Return the format of another library's folder; None if it is neither of them.

    Some hub folders have the configs of both libraries, but only Hugging Face's weights.
    """
    try:
        config = read_json(folder / hugging_face.CONFIG)
    except ConfigError:
        config = None
    is_hugging_face = isinstance(config, dict) and "model_type" in config
    if (folder / open_clip.CONFIG).is_file() and not (is_hugging_face and not any(folder.glob("open_clip_*model.*"))):
        return "open-clip"
    return "hugging-face" if is_hugging_face else None


def _imported(
    model: CLIP,
    name: str,
    kind: str,
    *,
    folder: Path | None = None,
    source: str | None = None,
    assumed: str | None = None,
) -> Bundle:
    """Return a model of another library as a bundle, with CLIP's tokenizer or that of the folder.

    Args:
        model: the model.
        name: where it was read from, as the user gave it.
        kind: its format, for the origin.
        folder: the folder of the model; None for a file of weights.
        source: the key of a file of weights (`source_stamp`); that of a folder is computed.
        assumed: what the format does not contain, for the origin.
    """
    if folder is None:
        tokenizer: Tokenizer = ClipBPETokenizer(context_length=model.config.text.context_length)
    else:
        tokenizer, source = tokenizer_of(model.config, folder), _folder_stamp(folder)
    origin = {"imported_from": name, "format": kind, **({"assumed": assumed} if assumed else {})}
    return Bundle(model=model, tokenizer=tokenizer, origin=origin, source=source)


def _saved(tokenizer: Tokenizer) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        return path.read_bytes()


def _check_same(ours: CLIP, theirs: CLIP, folder: Path) -> None:
    """Raise an error unless both models have the same architecture and bitwise equal weights."""
    mine, other = ours.state_dict(), theirs.state_dict()
    is_same = _essence(ours.config) == _essence(theirs.config) and mine.keys() == other.keys()
    if not is_same or not all(torch.equal(mine[name].cpu(), other[name]) for name in mine):
        raise BundleError(f"{folder}: reading back the exported model gave a different model; the export was removed")


def _essence(config: CLIPConfig) -> CLIPConfig:
    """Return the config without settings that only training uses, that follow from weight shapes, or that set rounding."""
    image = config.image
    if isinstance(image, ViTConfig):
        image = replace(image, mlp_ratio=1.0, patch_dropout=0.0)
    text, pixels = replace(config.text, mlp_ratio=1.0), replace(config.pixels, crop_rounding="even")
    return replace(config, image=image, text=text, pixels=pixels, init_temperature=1.0, init_logit_bias=None)
