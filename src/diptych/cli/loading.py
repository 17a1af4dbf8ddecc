"""Options and functions with which commands load a bundle."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import print_line
from diptych.core.errors import IndexingError
from diptych.core.paths import path_kind

if TYPE_CHECKING:
    from diptych.inference.loaded import LoadedBundle

BundlePath = Annotated[
    Path, Parameter(help="Bundle folder, ONNX export, short name, or any model that `diptych import` reads.")
]

IndexAddress = Annotated[
    str, Parameter(help="Folder of the index, or its address as postgresql://USER@HOST/DATABASE?index=NAME.")
]

_NUM_COMPARED = 16
"""Maximum number of images with which a lower precision is compared to fp32."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Loading:
    """Options of all commands that load a model."""

    device: Annotated[str, Parameter(help="Device: cpu, cuda, mps, or auto for the fastest one available.")] = "auto"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"],
        Parameter(help="Precision of the model; int8 is for CPUs. Below fp32, its cosine with fp32 is printed."),
    ] = "fp32"
    provider: Annotated[
        str | None,
        Parameter(help="For an ONNX export: execution provider of ONNX Runtime, such as cuda, coreml or openvino."),
    ] = None
    urls: Annotated[bool, Parameter(help="Allow URLs of images (http, s3, ...).")] = False

    def load(self, bundle: Path) -> "LoadedBundle":
        """Load a bundle with these options.

        Raises:
            DiptychError: the bundle cannot be loaded, or does not support the options.
        """
        from diptych.inference.loaded import load

        return load(bundle, device=self.device, precision=self.precision, urls=self.urls, provider=self.provider)

    def load_for(self, index: str, bundle: Path | None) -> "LoadedBundle":
        """Load a bundle to use with an index.

        Args:
            index: folder or address of the index.
            bundle: the bundle; if None, the one whose path the index stores.

        Raises:
            IndexingError: `bundle` is None, and there is no index yet, or its bundle no longer exists.
        """
        from diptych.bundle.known_models import PREFIX
        from diptych.index.open_index import index_exists, open_index, shown_place

        if bundle is not None:
            return self.load(bundle)
        if not index_exists(index):
            raise IndexingError(f"{shown_place(index)}: holds no index yet; a new one needs --bundle")
        with open_index(index) as opened:
            place, stored = opened.place, opened.bundle
        if not stored or (not stored.startswith(PREFIX) and path_kind(stored) is None):
            raise IndexingError(
                f"{place}: was made with {stored or 'a bundle without a path'}, which does not exist; name it with --bundle"
            )
        return self.load(Path(stored))

    def print_min_cosine(self, clip: "LoadedBundle", images: Sequence[str | Path]) -> None:
        """Print the minimum cosine between embeddings at this precision and at fp32; nothing if this is fp32.

        Args:
            clip: the loaded bundle.
            images: image files. The first 16 that can be read are compared.
        """
        if self.precision == "fp32":  # True for every ONNX export; its graphs were compared at export.
            return
        from diptych.core.errors import ImageError
        from diptych.images.decode import decode

        compared = []
        for image in images:
            with suppress(ImageError):
                compared.append(decode(image))
            if len(compared) == _NUM_COMPARED:
                break
        if compared:
            min_cosine = clip.min_cosine_to_fp32(compared)
            print_line(f"{self.precision}: minimum cosine with fp32 {min_cosine:.5f} over {len(compared)} images")


DEFAULT_LOADING = Loading()
