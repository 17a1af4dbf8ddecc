"""Read and write bundles. A bundle is a folder with everything that using a model needs; loading needs no network or pickle.

    config.json        model config, logit scale, metrics with their protocol, origin, checksums
    model.safetensors  weights
    tokenizer.json     the tokenizer's own file; `tokenizer.model` for a sentencepiece model
    README.md          model card

A bundle is written to a temporary folder and then renamed, so that an existing bundle is always complete.
"""

import json
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diptych.bundle.card import model_card, with_evaluations
from diptych.bundle.checksums import CHECKED_FILES, Verify, check_file, check_seal, seal, source_stamp
from diptych.bundle.identity import computed_identity, model_identity, sampled_identity
from diptych.bundle.read_tokenizer import read_tokenizer
from diptych.bundle.serialize import write_weights
from diptych.bundle.stored_weights import load_weights
from diptych.core.address import redacted, without_secrets
from diptych.core.cache import recall, remember
from diptych.core.errors import BundleError, ConfigError, DiptychWarning
from diptych.core.files import replace_folder, sha256_of, write_text
from diptych.core.precision import Precision
from diptych.core.program import command
from diptych.core.settings import from_plain, read_json, to_plain
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.models.towers import ModelTowers
from diptych.tokenizers.load_tokenizer import TOKENIZER_FILES, tokenizer_file
from diptych.tokenizers.protocol import Tokenizer

FORMAT_VERSION = 3
"""Format 1 had query, key and value in one matrix; format 2 had no checksums."""
WITHOUT_CHECKSUMS = 2
"""The only older format that can still be read."""
FILES = ("config.json", *CHECKED_FILES)
"""File names of a bundle whose tokenizer is not a sentencepiece model; see `bundle_files`."""
_warned: set[Path] = set()
"""Bundles without checksums about which this process has warned."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with its tokenizer, metrics and origin."""

    model: CLIP
    tokenizer: Tokenizer
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics, each with the protocol by which it was measured."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How the model was made: recipe, data, seed, steps, versions."""
    known_identity: str | None = None
    """The identity if it is known from checksums; None if it must be computed. Do not set it for a bundle that you create."""
    source: str | None = None
    """Key under which the computed identity is cached: the files of the model and their times (`source_stamp`)."""

    def __post_init__(self) -> None:
        """Check that the config and the tokenizer have the same text preparation.

        Raises:
            ConfigError: they differ.
        """
        of_tokenizer = getattr(self.tokenizer, "preparation", None)
        if of_tokenizer is not None and of_tokenizer != self.model.config.text.preparation:
            raise ConfigError(
                f"the tokenizer has {of_tokenizer}, but the config of the model has {self.model.config.text.preparation}"
            )

    @property
    def identity(self) -> str:
        """A hash that identifies the model (`bundle.identity.model_identity`).

        For a bundle with checksums it is known. Otherwise all weights are read once, and the result is cached.
        """
        if self.known_identity is not None:
            return self.known_identity
        key = None if self.source is None else f"identity {self.source}"
        found = None if key is None else recall(key)
        if found is None:
            found = computed_identity(self.model, self.tokenizer)
            if key is not None:
                remember(key, found)
        return found

    @property
    def config(self) -> CLIPConfig:
        """The architecture and the image transform."""
        return self.model.config

    def identities(self) -> tuple[str, ...]:
        """The identity, then the identity of the same model in indexes of earlier versions."""
        return self.identity, sampled_identity(self.model)

    @property
    def variant(self) -> str:
        """Always empty: the files of a bundle are as trained, and `diptych.load` converts the model in memory."""
        return ""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        return float(self.model.logit_scale.item())

    def towers(self, precision: Precision | None = None) -> ModelTowers:
        """Return the towers with the interface that the embedder uses. See `ModelTowers` for `precision`."""
        return ModelTowers(self.model, precision)


def require_bundle(model: object, what: str = "this") -> Bundle:
    """Return the model if it is a bundle.

    Args:
        model: the model of an embedder or of a loaded bundle.
        what: the feature that needs the PyTorch model; it is the subject of the message.

    Raises:
        ConfigError: the model is an ONNX export.
    """
    if not isinstance(model, Bundle):
        raise ConfigError(
            f"{what} needs the bundle, and this model is an ONNX export; name the bundle that was exported"
        )
    return model


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle to a folder, atomically; an existing folder is replaced.

    Raises:
        BundleError: the folder cannot be written.
    """
    with whole_folder(path.resolve()) as tmp:
        _write(bundle, tmp)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block ends, and removed if the block raises.

    An existing folder at `path` is replaced.

    Raises:
        BundleError: the folder cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path}: is a file; a folder cannot take its place")
    tmp = old = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield tmp
        tmp.chmod(0o755)
        for inside in tmp.rglob("*"):
            inside.chmod(0o755 if inside.is_dir() else 0o644)
        old = path.with_name(f".{path.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        replace_folder(tmp, path, old=old)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise BundleError(f"{path}: cannot be written ({reason or error})") from None
    finally:
        for folder in (tmp, old):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def bundle_files(folder: Path) -> tuple[str, str, str]:
    """Return the file names of config, weights and tokenizer of the bundle in a folder."""
    config, weights, tokenizer = FILES
    return config, weights, next((name for name in TOKENIZER_FILES if (folder / name).exists()), tokenizer)


def is_bundle(path: Path) -> bool:
    """Whether a folder is a Diptych bundle of any format version."""
    try:
        return "format_version" in read_json(path / FILES[0])
    except (ConfigError, TypeError):
        return False


def load_bundle(path: str | Path, *, verify: Verify = "auto") -> Bundle:
    """Return the bundle in a folder, on the CPU, in evaluation mode.

    Args:
        path: the folder.
        verify: `auto` compares the checksum of a large file once, and again only if its size, times or inode change; `full`
            always reads all files.

    Raises:
        BundleError: the folder is missing, is not a bundle, is incomplete or damaged, or has an unsupported format.
    """
    folder = Path(path)
    _check_folder(folder)
    content = _read_config(folder / "config.json")
    try:
        config = from_plain(CLIPConfig, content.get("model"), what=f"{folder / 'config.json'}")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    try:
        identity, source = _check_files(folder, content, config, verify=verify)
        model = load_weights(config, folder / "model.safetensors")
        tokenizer = read_tokenizer(config, folder / tokenizer_file(config.text.tokenizer))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror or error})") from None
    return Bundle(
        model=model,
        tokenizer=tokenizer,
        metrics=content.get("metrics", {}),
        origin=content.get("origin", {}),
        known_identity=identity,
        source=source,
    )


def add_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Add metrics to a bundle on the disk; the checksums of its weights and tokenizer do not change.

    Raises:
        BundleError: the config of the bundle is damaged, or has an unsupported format.
    """
    content = _read_config(path / "config.json")
    content["metrics"] = without_secrets({**content.get("metrics", {}), **metrics})
    if content["format_version"] == FORMAT_VERSION:
        content = seal(content)
    write_text(path / "config.json", json.dumps(content, indent=2) + "\n", errors="backslashreplace")


def add_evaluation(path: Path, what: str, *, summary: str, protocol: Mapping[str, str | int]) -> None:
    """Add the result of an evaluation to a bundle on the disk and to its model card.

    Args:
        path: the folder of the bundle.
        what: name of the evaluation; an earlier result with the same name is replaced.
        summary: the most important metrics in one line.
        protocol: how the metrics were measured.

    Raises:
        BundleError: the folder cannot be written, or has an unsupported format.
    """
    evaluations = _read_config(path / "config.json").get("metrics", {}).get("evaluations", {})
    evaluations = {**evaluations, redacted(what): {"summary": summary, "protocol": dict(protocol)}}
    try:
        card = with_evaluations((path / "README.md").read_text(encoding="utf-8"), evaluations)
        add_metrics(path, {"evaluations": evaluations})
        write_text(path / "README.md", redacted(card), errors="backslashreplace")
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror or error})") from None


def _write(bundle: Bundle, folder: Path) -> None:
    weights_sha256 = write_weights(bundle.model.state_dict(), folder / "model.safetensors")
    tokenizer = folder / tokenizer_file(bundle.config.text.tokenizer)
    bundle.tokenizer.save(tokenizer)
    content = {
        "format_version": FORMAT_VERSION,
        "model": to_plain(bundle.config),
        "logit_scale": round(bundle.model.logit_scale.item(), 4),
        "files": {"model.safetensors": weights_sha256, tokenizer.name: sha256_of(tokenizer)},
        "metrics": without_secrets(bundle.metrics),
        "origin": without_secrets(bundle.origin),
    }
    (folder / "config.json").write_text(json.dumps(seal(content), indent=2) + "\n", encoding="utf-8")
    card = model_card(bundle.model, without_secrets(bundle.origin))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise BundleError(f"{folder}: is neither a folder nor a file of weights (.safetensors, .pt, .pth, .bin)")
        raise BundleError(f"{folder}: no such file or folder")
    files = bundle_files(folder)
    missing = [name for name in files if not (folder / name).exists()]
    if not missing:
        irregular = [name for name in files if not stat.S_ISREG((folder / name).stat().st_mode)]
        if irregular:
            raise BundleError(f"{folder / irregular[0]}: is not a regular file")
        return
    inside = next((name for name in ("bundle-best", "bundle") if (folder / name).is_dir()), None)
    if inside:
        raise BundleError(f"{folder}: is a run, not a bundle; its bundle is {folder / inside}")
    if len(missing) == len(FILES):
        raise BundleError(
            f"{folder}: is neither a bundle, which has {', '.join(FILES)}, nor a model folder of open_clip or Hugging Face"
        )
    raise BundleError(f"{folder}: is incomplete; {', '.join(missing)} is missing")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in {WITHOUT_CHECKSUMS, FORMAT_VERSION} or isinstance(version, bool):
        raise BundleError(
            f"{path}: format_version is {version!r:.40}; this Diptych reads {WITHOUT_CHECKSUMS} and {FORMAT_VERSION}"
        )
    if version == FORMAT_VERSION or "files" in content or "sha256" in content:  # A flipped bit turns version 3 into 2.
        check_seal(content, path, checked_files=_checked_files(content))
    for name in ("metrics", "origin"):
        if not isinstance(content.get(name, {}), dict):
            raise BundleError(f"{path}: its {name} is not an object")
    return dict(content)


def _checked_files(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the files whose checksums a config contains: weights and tokenizer."""
    files = content.get("files")
    names = files if isinstance(files, dict) else {}
    return CHECKED_FILES[0], next((name for name in TOKENIZER_FILES if name in names), CHECKED_FILES[1])


def _check_files(
    folder: Path, content: Mapping[str, Any], config: CLIPConfig, *, verify: Verify
) -> tuple[str | None, str | None]:
    """Check the files of a bundle; return its identity, or else the key under which the computed identity is cached."""
    if content["format_version"] == WITHOUT_CHECKSUMS:
        _warn_without_checksums(folder)
        return None, source_stamp(folder / name for name in bundle_files(folder))
    names = _checked_files(content)
    for name in names:
        check_file(folder / name, content["files"][name], verify=verify)
    weights, tokenizer = (content["files"][name] for name in names)
    return model_identity(config, weights_sha256=weights, tokenizer_sha256=tokenizer), None


def _warn_without_checksums(folder: Path) -> None:
    if folder.resolve() not in _warned:
        _warned.add(folder.resolve())
        warnings.warn(
            f"{folder}: has no checksums (format {WITHOUT_CHECKSUMS}), so damage to it goes unnoticed; "
            f"`{command('import', folder, '--out', 'NEW')}` writes a copy with checksums",
            DiptychWarning,
            stacklevel=2,
        )
