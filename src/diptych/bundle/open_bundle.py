"""Whatever holds a model, as a bundle: our own folder, open_clip's, Hugging Face's, a bare file of weights, a hub id."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from diptych.bundle import hugging_face, hugging_face_writer, open_clip
from diptych.bundle.checksums import Verify, source_stamp
from diptych.bundle.folder import Bundle, load_bundle, whole_folder
from diptych.bundle.hub import PREFIX, download
from diptych.bundle.openai import read_openai
from diptych.bundle.weights import SUFFIXES
from diptych.core.errors import BundleError, ConfigError, unknown_name
from diptych.core.settings import read_json
from diptych.images.transforms import Pixels, height_width
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, ViTConfig
from diptych.models.resolution import at_resolution
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

ExportFormat: TypeAlias = Literal["open-clip", "hugging-face"]

_WRITERS: dict[ExportFormat, tuple[Callable[[CLIP, Path], None], Callable[[Path], CLIP]]] = {
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
    """The bundle that a path holds or stands for, on the CPU, in evaluation mode.

    Args:
        path: a bundle, a model folder of open_clip's or Hugging Face's, a file of weights in OpenAI's naming (`.pt`, `.pth`,
            `.bin`, `.safetensors`), or `hf:` and a hub id.
        activation: what a bare file of weights was trained with, if it does not say. Elsewhere it must agree.
        preset: the architecture of a bare file of weights, where its tensors do not tell.
        image_px: pictures of another size; position embeddings are resized.
        verify: `full` reads all files of a bundle and compares their checksums; `auto` skips a large file that was compared
            before and whose size, times and inode are the same. Other libraries' folders have no checksums.

    Raises:
        BundleError: nothing of the kind is there, it is damaged, or it has something that Diptych has not.
        ConfigError: an argument does not go with the model.
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
    """Write a folder that another library loads as its own, read it back, and compare.

    Raises:
        ConfigError: the folder holds something already, or the library has no place for something about the model.
        BundleError: what was written does not give the same model.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; choose another --out")
    write, read = _WRITERS[to]
    with whole_folder(folder) as beside:
        write(bundle.model, beside)
        _check_same(bundle.model, read(beside), folder)


def _read(path: Path, name: str, activation: Activation | None, preset: str | None, verify: Verify) -> Bundle:
    if path.is_file() and path.suffix in SUFFIXES:
        model = read_openai(path, activation=activation, preset=preset)
        shape = "" if preset else ", class token or attention pooling, square pictures, heads by width"
        assumed = f"OpenAI's image transform{shape}"
        source = source_stamp([path], activation, preset)
        return _imported(model, name, "weights in OpenAI's naming", assumed=assumed, source=source)
    if preset is not None:
        raise ConfigError(f"{name}: says itself what it is; --preset is for bare files of weights")
    match _kind(path):
        case "open-clip":
            return _imported(open_clip.read_open_clip(path), name, "open_clip folder", source=_folder_stamp(path))
        case "hugging-face":
            has_transform = hugging_face.read_processor(path) is not None
            lacking = "OpenAI's image transform: the folder has no preprocessor_config.json"
            return _imported(
                hugging_face.read_hugging_face(path),
                name,
                "Hugging Face folder",
                assumed=None if has_transform else lacking,
                source=_folder_stamp(path),
            )
        case _:
            return load_bundle(path, verify=verify)


def _folder_stamp(folder: Path) -> str | None:
    return source_stamp(path for path in folder.iterdir() if path.is_file())


def _kind(folder: Path) -> ExportFormat | None:
    """Whose folder it is, if another library's. Some hub folders have both configs, but Hugging Face's weights alone."""
    try:
        config = read_json(folder / hugging_face.CONFIG)
    except ConfigError:
        config = None
    is_hugging_face = isinstance(config, dict) and "model_type" in config
    if (folder / open_clip.CONFIG).is_file() and not (is_hugging_face and not any(folder.glob("open_clip_*model.*"))):
        return "open-clip"
    return "hugging-face" if is_hugging_face else None


def _imported(model: CLIP, name: str, kind: str, *, source: str | None, assumed: str | None = None) -> Bundle:
    tokenizer = ClipBPETokenizer(context_length=model.config.text.context_length)
    origin = {"imported_from": name, "format": kind, **({"assumed": assumed} if assumed else {})}
    return Bundle(model=model, tokenizer=tokenizer, origin=origin, source=source)


def _check_same(ours: CLIP, theirs: CLIP, folder: Path) -> None:
    """Same weights bit for bit, same architecture."""
    mine, other = ours.state_dict(), theirs.state_dict()
    is_same = _essence(ours.config) == _essence(theirs.config) and mine.keys() == other.keys()
    if not is_same or not all(torch.equal(mine[name].cpu(), other[name]) for name in mine):
        raise BundleError(f"{folder}: what was written does not read back as the same model; nothing was kept")


def _essence(config: CLIPConfig) -> CLIPConfig:
    """Without what only training reads, what the shapes of the weights say, and which way a library rounds."""
    image = config.image
    if isinstance(image, ViTConfig):
        image = replace(image, mlp_ratio=1.0, patch_dropout=0.0)
    text, pixels = replace(config.text, mlp_ratio=1.0), replace(config.pixels, crop_rounding="even")
    return replace(config, image=image, text=text, pixels=pixels, init_temperature=1.0, init_logit_bias=None)
