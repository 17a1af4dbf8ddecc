"""Read big_vision's checkpoints of SigLIP and SigLIP 2: NumPy archives (`.npz`) with two towers, without JAX.

The names are those of the flax modules in big_vision's `vit.py` and `text_transformer.py`. The layers are separate modules
(`encoderblock_0`), or one module whose arrays have a leading axis for the layers (`encoderblock`, as `nn.scan` builds it).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError  # noqa: N812

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diptych.bundle.foreign_tokenizer import tokenizer_file_of
from diptych.bundle.read_tokenizer import read_tokenizer
from diptych.bundle.renaming import shape_text
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain
from diptych.images.resample import Interpolation
from diptych.images.transforms import PixelConfig
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.preparation import SIGLIP, SIGLIP_2
from diptych.tokenizers.protocol import Tokenizer

SUFFIX = ".npz"
_GEMMA_ROWS = 256_000
"""Number of rows of SigLIP 2's token embedding; SigLIP has 32,000 or 250,000."""
_SLACK = 64 * 2**20
"""An archive may unpack to at most twice its size plus this many bytes."""
_ATTENTION, _MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
_BLOCKS = {"img": "Transformer", "txt": "Encoder_0"}
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Entry:
    """A big_vision array and the Diptych tensors that it contains: one, or one per layer along the first axis."""

    theirs: str
    ours: tuple[str, ...]
    convert: Callable[[Tensor], Tensor]
    is_scanned: bool = False


def read_big_vision(path: Path) -> tuple[CLIP, Tokenizer]:
    """Return the model of a checkpoint and its tokenizer, which is in the same folder, in evaluation mode.

    The architecture follows from the shapes of the arrays. The text preparation is SigLIP 2's if the vocabulary is Gemma's, and
    otherwise SigLIP's. If the file name contains an image size that matches the number of patches, that is the input size: for
    example 384 px for 27 patches of 14 px per side.

    Args:
        path: the archive.

    Raises:
        BundleError: the archive is damaged, is not a two-tower model in SigLIP's layout, or there is no tokenizer.
    """
    try:
        shapes = _shapes(path)
        config, kind_file = _config(shapes, path), _tokenizer_file(path.parent)
        config = _with_tokenizer(config, kind_file)
        weights = _weights(path, shapes, config)
    except (ConfigError, ValueError, LookupError, TypeError, EOFError, OSError, BadZipFile, ZlibError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: {reason.removeprefix(f'{path}: ')}") from None
    return CLIP.from_weights(config, weights), read_tokenizer(config, kind_file[1])


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's arrays by name, read from the headers in the archive."""
    with ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > 2 * path.stat().st_size + _SLACK:
            raise ConfigError(f"unpacks to {unpacked:,} bytes")
        found = {}
        for entry in entries:
            with archive.open(entry) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                found[entry.filename.removesuffix(".npy")] = tuple(read(file)[0])
    prefix = "params/" if any(name.startswith("params/") for name in found) else ""
    return {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}


def _config(shapes: _Shapes, path: Path) -> CLIPConfig:
    """Return the config that the shapes imply.

    Raises:
        ConfigError: an array is missing, or the shapes are not those of SigLIP.
    """
    required = (
        "img/embedding/kernel",
        "img/pos_embedding",
        "txt/Embed_0/embedding",
        "txt/pos_embedding",
        "txt/head/kernel",
    )
    missing = [name for name in (*required, "t") if name not in shapes]
    if missing:
        raise ConfigError(f"is not a two-tower checkpoint of big_vision: {missing[0]} is missing; its first arrays are "
                          f"{', '.join(sorted(shapes)[:3])}")  # fmt: skip
    height, width, _, _ = shapes["img/embedding/kernel"]
    num, side = shapes["img/pos_embedding"][1], math.isqrt(shapes["img/pos_embedding"][1])
    if side**2 != num or height != width:
        raise ConfigError(f"has {num} positions for patches of {height}x{width} px; Diptych supports square images")
    vocab_size = shapes["txt/Embed_0/embedding"][0]
    image = {
        "image_px": _image_px(path, side, height),
        "patch_px": height,
        "pooling": "attention",
        **_tower(shapes, "img"),
    }
    text = {
        **{"tokenizer": "pretrained", "vocab_size": vocab_size, "is_causal": False},
        **{"context_length": shapes["txt/pos_embedding"][1], **_tower(shapes, "txt")},
    }
    halves, filter_name = (0.5, 0.5, 0.5), "bilinear" if vocab_size == _GEMMA_ROWS else "bicubic"
    interpolation: Interpolation = "bilinear" if filter_name == "bilinear" else "bicubic"
    return CLIPConfig(
        embed_dim=shapes["txt/head/kernel"][-1],
        image=from_plain(ViTConfig, image, what="image tower"),
        text=from_plain(TextConfig, text, what="text tower"),
        pixels=PixelConfig(mean=halves, std=halves, resize="squash", interpolation=interpolation),
        init_temperature=0.1,
        init_logit_bias=-10.0 if "b" in shapes else None,
    )


def _image_px(path: Path, side: int, patch_px: int) -> int:
    """Return the image size: a number in the file name that gives this number of patches, or `side * patch_px`."""
    named = [int(number) for number in re.findall(r"(?<!\d)\d{2,4}(?!\d)", path.stem)]
    return next((px for px in named if px // patch_px == side), side * patch_px)


def _tower(shapes: _Shapes, tower: str) -> dict[str, Any]:
    """Return the sizes of a tower's blocks."""
    start = f"{tower}/{_BLOCKS[tower]}/encoderblock"
    is_scanned = _is_scanned(shapes, tower)
    first = start if is_scanned else f"{start}_0"
    query = shapes[f"{first}/{_ATTENTION}/query/kernel"]  # (layers,) width, heads, head width
    numbers = {int(found[1]) for name in shapes if (found := re.match(rf"{start}_(\d+)/", name))}
    layers = query[0] if is_scanned else len(numbers)
    width, heads = query[-3], query[-2]
    pool = shapes.get(f"{tower}/MAPHead_0/{_ATTENTION}/query/kernel", query)
    if pool[-2] != heads:
        raise ConfigError(f"has {pool[-2]} heads in its pooling, but {heads} in its blocks")
    hidden = shapes[f"{first}/{_MLP}/Dense_0/kernel"][-1]
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp_ratio": hidden / width}
    return {**sizes, "layout": "siglip", "activation": "gelu_tanh"}


def _is_scanned(shapes: _Shapes, tower: str) -> bool:
    return f"{tower}/{_BLOCKS[tower]}/encoderblock/LayerNorm_0/scale" in shapes


def _tokenizer_file(folder: Path) -> tuple[str, Path]:
    """Return the kind and the path of the tokenizer."""
    kind, file = tokenizer_file_of(folder)
    if file is None or kind not in {"pretrained", "sentencepiece"}:
        raise ConfigError(
            f"needs the tokenizer of its model: put tokenizer.json or the sentencepiece model (spiece.model) into {folder}"
        )
    return kind, file


def _with_tokenizer(config: CLIPConfig, kind_file: tuple[str, Path]) -> CLIPConfig:
    """Return the config with the kind of the tokenizer, and the text preparation of SigLIP (T5) or SigLIP 2 (Gemma)."""
    kind, file = kind_file
    assert isinstance(config.text, TextConfig)
    is_gemma = config.text.vocab_size == _GEMMA_ROWS or b'"<eos>"' in file.read_bytes()
    plain = {**vars(config.text), "tokenizer": kind, "preparation": SIGLIP_2 if is_gemma else SIGLIP}
    return CLIPConfig(**{**vars(config), "text": TextConfig(**plain)})


def _entries(shapes: _Shapes, config: CLIPConfig) -> Iterator[_Entry]:
    image, text = config.image, config.text
    assert isinstance(image, ViTConfig)
    assert isinstance(text, TextConfig)
    yield _Entry("img/embedding/kernel", ("image_tower.stem.embed.weight",), lambda x: x.permute(3, 2, 0, 1).flatten(1))
    yield _Entry("img/embedding/bias", ("image_tower.stem.embed.bias",), _same)
    yield _Entry("img/pos_embedding", ("image_tower.position_emb",), lambda x: x[0])
    yield from _blocks(shapes, "img", "image_tower", image.layers)
    pool, ours = "img/MAPHead_0", "image_tower.pool"
    yield _Entry(f"{pool}/probe", (f"{ours}.query",), lambda x: x.flatten())
    yield from _attention(f"{pool}/{_ATTENTION}", [f"{ours}.attention"])
    yield from _norm(f"{pool}/LayerNorm_0", [f"{ours}.norm"])
    yield from _mlp(f"{pool}/{_MLP}", [f"{ours}.mlp"])
    yield _Entry("txt/Embed_0/embedding", ("text_tower.token_emb.weight",), _same)
    yield _Entry("txt/pos_embedding", ("text_tower.position_emb",), lambda x: x[0])
    yield from _blocks(shapes, "txt", "text_tower", text.layers)
    yield from _dense("txt/head", ["text_tower.projection"])
    yield _Entry("t", ("log_logit_scale",), lambda x: x.reshape(()))
    if config.init_logit_bias is not None:
        yield _Entry("b", ("logit_bias",), lambda x: x.reshape(()))


def _blocks(shapes: _Shapes, tower: str, ours: str, layers: int) -> Iterator[_Entry]:
    start = f"{tower}/{_BLOCKS[tower]}"
    yield from _norm(f"{start}/encoder_norm", [f"{ours}.norm_post"])
    names = [f"{ours}.transformer.blocks.{i}" for i in range(layers)]
    if _is_scanned(shapes, tower):
        yield from _block(f"{start}/encoderblock", names, is_scanned=True)
        return
    for i, name in enumerate(names):
        yield from _block(f"{start}/encoderblock_{i}", [name])


def _block(theirs: str, ours: list[str], *, is_scanned: bool = False) -> Iterator[_Entry]:
    yield from _norm(f"{theirs}/LayerNorm_0", [f"{name}.norm_1" for name in ours], is_scanned=is_scanned)
    yield from _attention(f"{theirs}/{_ATTENTION}", [f"{name}.attention" for name in ours], is_scanned=is_scanned)
    yield from _norm(f"{theirs}/LayerNorm_1", [f"{name}.norm_2" for name in ours], is_scanned=is_scanned)
    yield from _mlp(f"{theirs}/{_MLP}", [f"{name}.mlp" for name in ours], is_scanned=is_scanned)


def _attention(theirs: str, ours: list[str], *, is_scanned: bool = False) -> Iterator[_Entry]:
    for part in ("query", "key", "value"):  # The kernels have the shape (width, heads, head width).
        names = [f"{name}.{part}" for name in ours]
        yield _Entry(f"{theirs}/{part}/kernel", _ends(names, "weight"), lambda x: x.flatten(1).T, is_scanned)
        yield _Entry(f"{theirs}/{part}/bias", _ends(names, "bias"), lambda x: x.flatten(), is_scanned)
    out = [f"{name}.out" for name in ours]  # The kernel has the shape (heads, head width, width).
    yield _Entry(f"{theirs}/out/kernel", _ends(out, "weight"), lambda x: x.flatten(0, 1).T, is_scanned)
    yield _Entry(f"{theirs}/out/bias", _ends(out, "bias"), _same, is_scanned)


def _mlp(theirs: str, ours: list[str], *, is_scanned: bool = False) -> Iterator[_Entry]:
    for dense, place in (("Dense_0", 0), ("Dense_1", 2)):
        yield from _dense(f"{theirs}/{dense}", [f"{name}.{place}" for name in ours], is_scanned=is_scanned)


def _dense(theirs: str, ours: list[str], *, is_scanned: bool = False) -> Iterator[_Entry]:
    yield _Entry(f"{theirs}/kernel", _ends(ours, "weight"), lambda x: x.T, is_scanned)
    yield _Entry(f"{theirs}/bias", _ends(ours, "bias"), _same, is_scanned)


def _norm(theirs: str, ours: list[str], *, is_scanned: bool = False) -> Iterator[_Entry]:
    yield _Entry(f"{theirs}/scale", _ends(ours, "weight"), _same, is_scanned)
    yield _Entry(f"{theirs}/bias", _ends(ours, "bias"), _same, is_scanned)


def _ends(names: Iterable[str], part: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in names)


def _same(x: Tensor) -> Tensor:
    return x


def _weights(path: Path, shapes: _Shapes, config: CLIPConfig) -> dict[str, Tensor]:
    """Return the weights in float32 by Diptych's names. Each array is read once and freed after its conversion.

    Raises:
        ConfigError: an array is missing or unexpected, has a wrong shape, or is not finite.
    """
    entries = {entry.theirs: entry for entry in _entries(shapes, config)}
    for problem, names in (
        ("arrays are missing", entries.keys() - shapes),
        ("unexpected arrays", shapes.keys() - entries),
    ):
        if names:
            raise ConfigError(f"{problem}: {', '.join(sorted(names)[:3])}{' ...' if len(names) > 3 else ''}")
    expected = {name: tensor.shape for name, tensor in CLIP.without_memory(config).state_dict().items()}
    weights = dict[str, Tensor]()
    with np.load(path, allow_pickle=False) as archive:
        prefix = "params/" if any(name.startswith("params/") for name in archive.files) else ""
        for entry in entries.values():
            whole = _tensor(archive[prefix + entry.theirs], entry.theirs)
            parts = whole if entry.is_scanned else [whole]
            for name, part in zip(entry.ours, parts, strict=True):
                weights[name] = entry.convert(part).contiguous()
                if weights[name].shape != expected[name]:
                    raise ConfigError(
                        f"{entry.theirs} is {shape_text(part.shape)}, which does not fit the other arrays"
                    )
    return weights


def _tensor(array: NDArray[Any], name: str) -> Tensor:
    """Return an array in float32. NumPy has no bfloat16 and stores it as two bytes without a type."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    elif array.dtype.kind == "f":
        tensor = torch.from_numpy(np.asarray(array, dtype=np.float32))
    else:
        raise ConfigError(f"{name} has the type {array.dtype}, which is not a floating-point number")
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"{name} is not finite")
    return tensor
