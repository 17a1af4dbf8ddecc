"""Load models for inference (`diptych.load`)."""

from pathlib import Path

from diptych.bundle.hub import PREFIX, download
from diptych.bundle.known_models import missing_model, resolve_name
from diptych.bundle.licenses import warn_if_non_commercial
from diptych.bundle.onnx_layout import is_onnx_folder, refuse_half_export
from diptych.bundle.weights_facts import Pooling, WeightsChoice, WeightsFacts
from diptych.core.errors import BundleError, ConfigError, OnnxExportError
from diptych.core.extras import has_torch, missing_extra
from diptych.core.paths import path_kind
from diptych.core.precision import InferencePrecision
from diptych.core.progress import bar, silently
from diptych.images.transforms import Pixels
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.models.config import Activation
from diptych.runtime.onnx_folder import load_onnx

__all__ = ["InferencePrecision", "LoadedBundle", "load"]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: InferencePrecision = "fp32",
    batch_size: int = 64,
    urls: bool = False,
    progress: bool = True,
    activation: Activation | None = None,
    preset: str | None = None,
    image_px: Pixels | None = None,
    provider: str | None = None,
    weights: WeightsChoice | None = None,
    heads: tuple[int, ...] | None = None,
    pooling: tuple[Pooling, ...] | None = None,
    is_causal: bool | None = None,
) -> LoadedBundle:
    """Load a model for inference.

    Args:
        path: a bundle folder; an ONNX folder (`diptych export --to onnx`), which needs no PyTorch; the short name of a known
            model, such as "siglip2-b-32-256" (a local file or folder with that name has precedence); `hf:` and a hub id,
            optionally with `@` and a revision; or any other folder or file that `diptych import` reads (`open_bundle` lists
            them).
        device: "cpu", "cuda", "mps", or "auto" for the fastest device that is available. For an ONNX folder, "auto" is the CPU.
        precision: data type of the computation: "fp32"; "bf16" or "fp16" on devices that support it; "int8" on CPUs with
            instructions for it. `LoadedBundle.min_cosine_to_fp32` measures the loss of accuracy. For an ONNX folder, leave the
            default: its precision was set at export.
        batch_size: number of images or texts per batch.
        urls: whether an image may be a URL (http, s3 and other protocols of fsspec). False by default, because the URLs may
            come from somebody else and reading them can have costs.
        progress: whether downloads and operations of more than two seconds show a progress bar, if standard error is a
            terminal.
        activation: activation of the model, for a weights file that does not contain it.
        preset: architecture of the model, for a weights file whose tensors do not determine it.
        image_px: image size in pixels, if different from the model's. The position embeddings are resized.
        provider: for an ONNX folder, the execution provider of ONNX Runtime, such as "cuda", "coreml" or "openvino". It
            replaces `device`.
        weights: for a training checkpoint, "ema" for weights averaged over the training steps, or "raw" for the weights of the
            last step; by default the averaged weights if the file has them.
        heads: for a weights file, the numbers of attention heads of the image tower and the text tower; by default one head per
            64 channels.
        pooling: for a weights file, the pooling of the image tower ("cls" or "mean") and of the text tower ("eot", "last" or
            "first"); by default class token and end token.
        is_causal: for a weights file, whether the text tower has a causal mask; by default True.

    Returns:
        The loaded model.

    Raises:
        BundleError: there is no model at `path`, it is damaged, or it has features that Diptych does not support. For an
            unknown name, the message suggests similar short names.
        ConfigError: the machine does not support the device or precision, an argument does not match the model, or the model
            needs PyTorch, which is not installed.
    """
    track = bar if progress else silently
    facts = WeightsFacts(
        activation=activation, preset=preset, weights=weights, heads=heads, pooling=pooling, is_causal=is_causal
    )
    path = resolve_name(str(path))
    folder = _onnx_folder(path, progress=progress)
    if folder is None and provider is not None:
        raise ConfigError(f"{path}: is not an ONNX export, so it has no provider; set device instead")
    if folder is None:
        try:
            from diptych.inference.load_model import load_model  # noqa: PLC0415  (imports PyTorch)
        except ModuleNotFoundError as error:
            if not path.startswith(PREFIX) and path_kind(path) is None:
                raise BundleError(missing_model(path)) from None
            raise (missing_extra(error, f"{path}: is not an ONNX export; it") or error) from None
        try:
            bundle, identities = load_model(
                path,
                device=device,
                precision=precision,
                facts=facts,
                image_px=image_px,
                progress=progress,
            )
        except OnnxExportError as error:  # A hub id of an export without its bundle.
            folder = error.folder
        else:
            return LoadedBundle(
                bundle,
                path=Path(path),
                batch_size=batch_size,
                urls=urls,
                track=track,
                identities=identities,
            )
    changes = {"precision": precision != "fp32", "image_px": image_px}
    stated = [*facts.stated, *(name for name, value in changes.items() if value)]
    if stated:
        raise ConfigError(f"{path}: is an ONNX export; {stated[0]} is set when the bundle is exported")
    model = load_onnx(folder, provider=_provider(device) if provider is None else provider)
    warn_if_non_commercial(model.origin, path)
    return LoadedBundle(model, path=Path(path), batch_size=batch_size, urls=urls, track=track)


def _onnx_folder(path: str, *, progress: bool) -> Path | None:
    """The ONNX folder at a path; None for any other model. If PyTorch is installed, a hub id stands for a bundle."""
    if path.startswith(PREFIX) and has_torch():
        return None
    folder = download(path, progress=progress) if path.startswith(PREFIX) else Path(path)
    refuse_half_export(folder, path)
    return folder if is_onnx_folder(folder) else None


def _provider(device: str) -> str | None:
    return None if device in {"auto", "cpu"} else device.partition(":")[0]
