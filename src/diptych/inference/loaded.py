"""Load models for inference (`diptych.load`)."""

from pathlib import Path

from diptych.bundle.hub import PREFIX, download
from diptych.bundle.onnx_layout import is_onnx_folder, refuse_half_export
from diptych.core.errors import BundleError, ConfigError, OnnxExportError
from diptych.core.extras import has_torch, missing_extra
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
) -> LoadedBundle:
    """Load a model for inference.

    Args:
        path: a bundle folder; an ONNX folder (`diptych export --to onnx`), which needs no PyTorch; or anything that
            `diptych import` reads: a model folder of open_clip or Hugging Face, a file with weights in OpenAI's format, or
            `hf:` and a hub id.
        device: "cpu", "cuda", "mps", or "auto" for the fastest device that is available. For an ONNX folder, "auto" is the CPU.
        precision: data type of the computation: "fp32"; "bf16" or "fp16" on devices that support it; "int8" on CPUs with
            instructions for it. `LoadedBundle.min_cosine_to_fp32` measures the loss of accuracy. For an ONNX folder, leave the
            default: its precision was set at export.
        batch_size: number of images or texts per batch.
        urls: whether an image may be a URL (http, s3 and other protocols of fsspec). False by default, because the URLs may
            come from somebody else and reading them can have costs.
        progress: whether operations of more than two seconds show a progress bar, if standard error is a terminal.
        activation: activation of the model, for a weights file that does not contain it.
        preset: architecture of the model, for a weights file whose tensors do not determine it.
        image_px: image size in pixels, if different from the model's. The position embeddings are resized.
        provider: for an ONNX folder, the execution provider of ONNX Runtime, such as "cuda", "coreml" or "openvino". It
            replaces `device`.

    Returns:
        The loaded model.

    Raises:
        BundleError: there is no model at `path`, it is damaged, or it has features that Diptych does not support.
        ConfigError: the machine does not support the device or precision, an argument does not match the model, or the model
            needs PyTorch, which is not installed.
    """
    track = bar if progress else silently
    folder = _onnx_folder(path)
    if folder is None and provider is not None:
        raise ConfigError(f"{path}: is not an ONNX export, so it has no provider; set device instead")
    if folder is None:
        try:
            from diptych.inference.load_model import load_model  # noqa: PLC0415  (imports PyTorch)
        except ModuleNotFoundError as error:
            if not str(path).startswith(PREFIX) and not Path(path).exists():
                raise BundleError(f"{path}: no such file or folder") from None
            raise (missing_extra(error, f"{path}: is not an ONNX export; it") or error) from None
        try:
            bundle, identities = load_model(
                path, device=device, precision=precision, activation=activation, preset=preset, image_px=image_px
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
    changes = {"precision": precision != "fp32", "activation": activation, "preset": preset, "image_px": image_px}
    for name, value in changes.items():
        if value:
            raise ConfigError(f"{path}: is an ONNX export; {name} is set when the bundle is exported")
    model = load_onnx(folder, provider=_provider(device) if provider is None else provider)
    return LoadedBundle(model, path=Path(path), batch_size=batch_size, urls=urls, track=track)


def _onnx_folder(path: str | Path) -> Path | None:
    """The ONNX folder at a path; None for any other model. If PyTorch is installed, a hub id stands for a bundle."""
    if str(path).startswith(PREFIX):
        if has_torch():
            return None
        path = download(str(path))
    refuse_half_export(Path(path), str(path))
    return Path(path) if is_onnx_folder(Path(path)) else None


def _provider(device: str) -> str | None:
    return None if device in {"auto", "cpu"} else device.partition(":")[0]
