"""A bundle is a folder with all that use needs; it loads with no network and no pickle.

    config.json        the model's config, its temperature, its metrics with their protocol, where it came from
    model.safetensors  the weights
    tokenizer.json     the tokenizer's own file
    README.md          a model card, for people

It is written beside its place and renamed, so that whatever bears the name is whole.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diptych.core.errors import BundleError, ConfigError
from diptych.core.files import replace_folder, write_text
from diptych.core.settings import from_plain, to_plain
from diptych.images.transforms import size_name
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ImageConfig, TextConfig, ViTConfig
from diptych.tokenizers.choice import load_tokenizer
from diptych.tokenizers.protocol import Tokenizer

FORMAT_VERSION = 2
"""1 had query, key and value in one matrix."""
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with everything that its use needs."""

    model: CLIP
    tokenizer: Tokenizer
    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures, each with the protocol it was measured by."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where it came from: recipe, data, seed, steps, versions."""

    @property
    def config(self) -> CLIPConfig:
        """The architecture and the image transform."""
        return self.model.config


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write the folder whole or not at all; one that is there already is replaced.

    Raises:
        BundleError: it cannot be written there.
    """
    with whole_folder(path.resolve()) as beside:
        _write(bundle, beside)


_MEASURED = "## Measured"
"""Heading of the card's last part, which grows with each evaluation."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is written, and goes if anything fails.

    Raises:
        BundleError: it cannot be written there.
    """
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path}: is a file; a folder cannot take its place")
    beside = old = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield beside
        beside.chmod(0o755)
        for file in beside.iterdir():
            file.chmod(0o644)
        if path.exists():
            old = path.with_name(f".{path.name}-old")
            shutil.rmtree(old, ignore_errors=True)
            replace_folder(beside, path, old=old)
        else:
            beside.rename(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise BundleError(f"{path}: cannot be written ({reason or error})") from None
    finally:
        for folder in (beside, old):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle of ours, of whatever format."""
    try:
        return "format_version" in json.loads((path / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_bundle(path: str | Path) -> Bundle:
    """The bundle in a folder, on the CPU, in evaluation mode.

    Raises:
        BundleError: the folder is missing, no bundle, incomplete, damaged, or of a newer format.
    """
    folder = Path(path)
    _check_folder(folder)
    content = _read_config(folder / "config.json")
    try:
        config = from_plain(CLIPConfig, content.get("model"), what=f"{folder / 'config.json'}")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    model = _load_model(config, folder / "model.safetensors")
    try:
        tokenizer = load_tokenizer(
            config.text.tokenizer, folder / "tokenizer.json", context_length=config.text.context_length
        )
    except Exception as error:  # The engine raises bare exceptions.
        raise BundleError(f"{folder / 'tokenizer.json'}: is damaged ({error})") from None
    if tokenizer.vocab_size != config.text.vocab_size:
        raise BundleError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} entries, its model {config.text.vocab_size}"
        )
    return Bundle(
        model=model, tokenizer=tokenizer, metrics=content.get("metrics", {}), origin=content.get("origin", {})
    )


def add_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Keep more figures in a bundle that is already on disk."""
    content = _read_config(path / "config.json")
    content["metrics"] = {**content.get("metrics", {}), **metrics}
    _replace(path / "config.json", json.dumps(content, indent=2) + "\n")


def add_evaluation(path: Path, what: str, *, summary: str, protocol: Mapping[str, str | int]) -> None:
    """Keep what an evaluation found in a bundle that is already on disk, and in its card; the last one of a name counts.

    Raises:
        BundleError: the folder cannot be written, or is of another format.
    """
    evaluations = _read_config(path / "config.json").get("metrics", {}).get("evaluations", {})
    evaluations = {**evaluations, what: {"summary": summary, "protocol": dict(protocol)}}
    lines = [_MEASURED, ""]
    for name, found in evaluations.items():
        how = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in found["protocol"].items())
        lines += [f"- {name}: {found['summary']}", f"  ({how})"]
    card = (path / "README.md").read_text(encoding="utf-8").partition(f"\n{_MEASURED}")[0].rstrip()
    try:
        add_metrics(path, {"evaluations": evaluations})
        _replace(path / "README.md", card + "\n\n" + "\n".join(lines) + "\n")
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror or error})") from None


def _replace(file: Path, text: str) -> None:
    write_text(file, text, errors="backslashreplace")


def _write(bundle: Bundle, folder: Path) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "model": to_plain(bundle.config),
        "logit_scale": round(bundle.model.logit_scale.item(), 4),
        "metrics": bundle.metrics,
        "origin": bundle.origin,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    bundle.tokenizer.save(folder / "tokenizer.json")
    (folder / "README.md").write_text(_model_card(bundle), encoding="utf-8", errors="backslashreplace")


def describe_image_tower(image: ImageConfig) -> str:
    """In half a sentence."""
    if isinstance(image, ViTConfig):
        patches = f"patches of {size_name(image.patch_px)} px"
        return f"vision transformer, {image.layers} layers of {image.width}, {patches}, {image.pooling} pooling"
    if isinstance(image, ConvNetConfig):
        return (
            f"convolutional network, {' + '.join(map(str, image.layers))} blocks of {', '.join(map(str, image.widths))}"
        )
    return f"ResNet, {' + '.join(map(str, image.layers))} blocks, width {image.width}, attention pooling"


def describe_text_tower(text: TextConfig) -> str:
    """In half a sentence."""
    kind = "causal" if text.is_causal else "bidirectional"
    entries = f"{text.tokenizer} tokenizer of {text.vocab_size:,} entries"
    return f"{kind}, {text.layers} layers of {text.width}, {entries}, context {text.context_length}"


def _model_card(bundle: Bundle) -> str:
    config = bundle.config
    lines = [
        "# A CLIP model in Diptych's format",
        "",
        f"- image tower: {describe_image_tower(config.image)}; pictures of {size_name(config.image.image_px)} px",
        f"- text tower: {describe_text_tower(config.text)}",
        f"- parameters: {sum(parameter.numel() for parameter in bundle.model.parameters()):,}",
        *(f"- {name}: {value}" for name, value in bundle.origin.items()),
        "",
        "```python",
        "import diptych",
        "",
        'clip = diptych.load("path/to/this/folder")',
        'clip.rank_images("a dog in the snow", "photos/")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise BundleError(f"{folder}: is no folder, and no file of weights (.safetensors, .pt, .pth, .bin)")
        raise BundleError(f"{folder}: no such file or folder")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not missing:
        return
    inside = next((name for name in ("bundle-best", "bundle") if (folder / name).is_dir()), None)
    if inside:
        raise BundleError(f"{folder}: is a run, not a bundle; its bundle is {folder / inside}")
    if len(missing) == len(FILES):
        raise BundleError(
            f"{folder}: is no bundle, which holds {', '.join(FILES)}, nor a model folder of open_clip's or Hugging Face's"
        )
    raise BundleError(f"{folder}: is incomplete; {', '.join(missing)} is missing")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: is not JSON: {error}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format_version is {version!r}; this Diptych reads {FORMAT_VERSION}")
    return dict(content)


def _load_model(config: CLIPConfig, path: Path) -> CLIP:
    try:
        return CLIP.from_weights(config, load_file(path))
    except SafetensorError as error:
        raise BundleError(f"{path}: is damaged ({error})") from None
    except RuntimeError as error:
        first = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise BundleError(f"{path}: does not fit its config.json: {first}") from None
