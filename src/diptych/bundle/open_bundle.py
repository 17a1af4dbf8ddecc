"""Open models in all supported formats as bundles: Diptych, open_clip and Hugging Face folders, weights files, hub ids."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from diptych.bundle import big_vision, hugging_face, hugging_face_writer, open_clip
from diptych.bundle.adapters import is_adapter, merged_adapter
from diptych.bundle.bare_weights import read_bare_weights
from diptych.bundle.checksums import Verify, source_stamp
from diptych.bundle.folder import Bundle, load_bundle, whole_folder
from diptych.bundle.foreign_tokenizer import tokenizer_of
from diptych.bundle.hub import PREFIX, download
from diptych.bundle.known_models import missing_model, resolve_name
from diptych.bundle.licenses import LICENSE, allows_commercial_use, warn_if_non_commercial
from diptych.bundle.model_license import license_of
from diptych.bundle.onnx_layout import is_onnx_folder, refuse_half_export
from diptych.bundle.refusals import refuse_unsupported
from diptych.bundle.sentence_transformers import sentence_transformers_clip
from diptych.bundle.weights import INDEX, SUFFIXES
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import BundleError, ConfigError, OnnxExportError, unknown_name
from diptych.core.paths import path_kind
from diptych.core.settings import read_json
from diptych.images.transforms import Pixels, height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.resolution import at_resolution
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.protocol import Tokenizer

_NOTHING_STATED = WeightsFacts()
ExportFormat: TypeAlias = Literal["open-clip", "hugging-face"]

_WRITERS: dict[ExportFormat, tuple[Callable[[CLIP, Tokenizer, Path], None], Callable[[Path], CLIP]]] = {
    "open-clip": (open_clip.write_open_clip, open_clip.read_open_clip),
    "hugging-face": (hugging_face_writer.write_hugging_face, hugging_face.read_hugging_face),
}


def open_bundle(
    path: str | Path,
    *,
    facts: WeightsFacts = _NOTHING_STATED,
    image_px: Pixels | None = None,
    verify: Verify = "auto",
    progress: bool = True,
) -> Bundle:
    """Return the model at a path as a bundle, on the CPU, in evaluation mode.

    If the license does not allow commercial use, this function emits a `DiptychWarning`.

    Args:
        path: a bundle; a model folder of open_clip, Hugging Face or sentence-transformers; a folder with a LoRA adapter in
            PEFT's format; a weights file in OpenAI's naming (`.pt`, `.pth`, `.bin`, `.ckpt`, `.safetensors`,
            `.safetensors.index.json`); a big_vision checkpoint (`.npz`) next to its tokenizer; `hf:` followed by a hub id and
            optionally `@` and a revision; or the short name of a known model (`bundle.known_models`).
        facts: settings of a weights file that the file does not contain. Other formats contain them, and an activation that
            differs, or any other setting, is an error.
        image_px: image size in pixels, if it differs from the model's; position embeddings are resized.
        verify: `full` reads all files of a bundle and compares their checksums; `auto` skips a large file that was verified
            before and has the same size, times and inode. Folders of other libraries have no checksums.
        progress: whether a download shows a progress bar, if standard error is a terminal.

    Raises:
        BundleError: there is no model at the path, it is damaged, or it has a feature that Diptych does not support.
        ConfigError: an argument is not valid or does not fit the model.
    """
    if verify not in get_args(Verify):
        raise ConfigError(unknown_name("value of verify", verify, get_args(Verify)))
    name = resolve_name(str(path))
    folder = download(name, progress=progress) if name.startswith(PREFIX) else Path(name)
    bundle = _with_license(_read(folder, name, facts, verify), name)
    found = bundle.config.text.activation if isinstance(bundle.config.text, TextConfig) else "no activation to choose"
    if facts.activation is not None and found != facts.activation:
        raise BundleError(f"{path}: has {found}, but the activation was given as {facts.activation}")
    if image_px is not None and height_width(image_px) != height_width(bundle.config.image.image_px):
        source = None if bundle.source is None else f"{bundle.source} {height_width(image_px)}"
        bundle = replace(bundle, model=at_resolution(bundle.model, image_px), known_identity=None, source=source)
    return bundle


def _with_license(bundle: Bundle, name: str) -> Bundle:
    """Return the bundle with its license, if known, in the origin. Warn if the license does not allow commercial use."""
    if LICENSE not in bundle.origin:
        found = license_of(name)
        bundle = bundle if found is None else replace(bundle, origin={**bundle.origin, LICENSE: found})
    warn_if_non_commercial(bundle.origin, name)
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


def _read(path: Path, name: str, facts: WeightsFacts, verify: Verify) -> Bundle:
    if path.is_file() and path.name.endswith(INDEX) and path.parent.joinpath(hugging_face.CONFIG).is_file():
        path = path.parent
    if path.is_file() and (path.suffix in SUFFIXES or path.name.endswith(INDEX)):
        return _read_file(path, name, facts)
    stated = [fact for fact in facts.stated if fact != "activation"]
    if stated:
        option = "no-causal" if stated[0] == "is_causal" else stated[0]
        raise ConfigError(
            f"{name}: --{option} is only for weights files in OpenAI's naming; other models contain their settings"
        )
    if path.is_file() and path.suffix == big_vision.SUFFIX:
        return _read_big_vision(path, name)
    if path_kind(path) is None:
        raise BundleError(missing_model(name))
    if is_onnx_folder(path):
        raise OnnxExportError(
            f"{name}: is an ONNX export, which cannot be trained or converted; name the bundle that was exported", path
        )
    if path.is_dir():
        refuse_half_export(path, name)
        refuse_unsupported(path, name)
    return _read_folder(sentence_transformers_clip(path), name, verify)


def _read_file(path: Path, name: str, facts: WeightsFacts) -> Bundle:
    found = read_bare_weights(path, facts)
    source = source_stamp([path], *(getattr(facts, field.name) for field in fields(facts)))
    notes = {} if found.note is None else {"weights": found.note}
    return _imported(found.model, name, "weights in OpenAI's naming", assumed=found.assumed, source=source, notes=notes)


def _adapter_origin(name: str, base: Bundle) -> dict[str, str]:
    """The origin of a merged adapter. Its license is the one of the base or of the adapter that excludes commercial use."""
    base_name = str(base.origin.get("imported_from", "a bundle"))
    licenses = [found for found in (base.origin.get(LICENSE), license_of(name)) if isinstance(found, str)]
    licenses.sort(key=lambda found: allows_commercial_use(found) is not False)
    origin = {"imported_from": name, "format": "adapter in PEFT's format", "base": base_name}
    return {**origin, LICENSE: licenses[0]} if licenses else origin


def _read_folder(path: Path, name: str, verify: Verify) -> Bundle:
    if is_adapter(path):
        base, model = merged_adapter(path, lambda given, base_name: _adapted_base(given, base_name, path, verify))
        origin = _adapter_origin(name, base)
        return replace(base, model=model, origin=origin, known_identity=None, source=None, metrics={})
    match folder_kind(path):
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


def _adapted_base(path: Path, name: str, adapter: Path, verify: Verify) -> Bundle:
    if is_adapter(path):
        raise BundleError(f"{adapter}: its base model {name} is an adapter itself; merge that one first")
    return _with_license(_read(path, name, _NOTHING_STATED, verify), name)


def _read_big_vision(path: Path, name: str) -> Bundle:
    model, tokenizer = big_vision.read_big_vision(path)
    assumed = (
        "the text preparation of SigLIP or SigLIP 2 by vocabulary, gelu_tanh, and Pillow's filter for TensorFlow's"
    )
    origin = {"imported_from": name, "format": "checkpoint of big_vision", "assumed": assumed}
    return Bundle(model=model, tokenizer=tokenizer, origin=origin, source=_folder_stamp(path.parent))


def _folder_stamp(folder: Path) -> str | None:
    return source_stamp(path for path in folder.iterdir() if path.is_file())


def folder_kind(folder: Path) -> ExportFormat | None:
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
    notes: Mapping[str, str] | None = None,
) -> Bundle:
    """Return a model of another library as a bundle, with the tokenizer in its folder, or CLIP's for a weights file.

    Args:
        model: the model.
        name: the path or address of the model, as the user wrote it.
        kind: its format, for the origin.
        folder: the folder of the model; None for a weights file.
        source: the key of a weights file (`source_stamp`); for a folder, it is computed.
        assumed: assumptions about settings that the format does not contain, for the origin.
        notes: further entries of the origin.
    """
    if folder is None:
        text = model.config.text
        tokenizer: Tokenizer = ClipBPETokenizer(
            context_length=text.context_length, special_names=text.preparation.special_names
        )
    else:
        tokenizer, source = tokenizer_of(model.config, folder), _folder_stamp(folder)
    origin = {"imported_from": name, "format": kind, **({"assumed": assumed} if assumed else {}), **(notes or {})}
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
    """Return the config without settings that only training uses, that follow from weight shapes, or that set rounding.

    The names of CLIP's special tokens are also left out, because Hugging Face's folders always use OpenAI's names.
    """
    image = config.image
    if isinstance(image, ViTConfig):
        image = replace(image, mlp_ratio=1.0, patch_dropout=0.0)
    preparation = replace(config.text.preparation, special_names="open-clip")
    text, pixels = replace(config.text, preparation=preparation), replace(config.pixels, crop_rounding="even")
    if isinstance(text, TextConfig):
        text = replace(text, mlp_ratio=1.0)
    return replace(config, image=image, text=text, pixels=pixels, init_temperature=1.0, init_logit_bias=None)
