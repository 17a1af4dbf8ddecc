"""How a command loads the bundle that it uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diptych.cli.output import say
from diptych.core.errors import IndexingError
from diptych.core.paths import path_kind

if TYPE_CHECKING:
    from diptych.inference.loaded import LoadedBundle

BundlePath = Annotated[Path, Parameter(help="Bundle folder, or whatever `diptych import` reads.")]

IndexPlace = Annotated[
    str, Parameter(help="Folder of the index, or its address: postgresql://USER@HOST/DATABASE?index=NAME.")
]

_COMPARED = 16


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Loading:
    """What the commands that use a model are told."""

    device: Annotated[str, Parameter(help="cpu, cuda, mps, or auto for the fastest there is.")] = "auto"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"],
        Parameter(help="What the model computes in; int8 is for CPUs, and its agreement with fp32 is printed."),
    ] = "fp32"
    urls: Annotated[
        bool, Parameter(help="Read pictures from URLs, too (http, s3, ...).", negative="", show_default=False)
    ] = False

    def load(self, bundle: Path) -> "LoadedBundle":
        """The bundle as it is asked for."""
        from diptych.inference.loaded import load

        return load(bundle, device=self.device, precision=self.precision, urls=self.urls)

    def load_for(self, index: str, bundle: Path | None) -> "LoadedBundle":
        """The bundle that was named, or that the index remembers."""
        from diptych.index.open_index import index_exists, open_index, shown_place

        if bundle is not None:
            return self.load(bundle)
        if not index_exists(index):
            raise IndexingError(f"{shown_place(index)}: holds no index yet; a new one needs --bundle")
        with open_index(index) as opened:
            place, remembered = opened.place, opened.bundle
        if not remembered or path_kind(remembered) is None:
            raise IndexingError(
                f"{place}: was made with {remembered or 'a bundle without a place'}, which is not there; name it with --bundle"
            )
        return self.load(Path(remembered))

    def tell_agreement(self, clip: "LoadedBundle", images: Sequence[str | Path]) -> None:
        """Print what a lower precision costs on some of the pictures that can be read; nothing for fp32."""
        if self.precision == "fp32":
            return
        from diptych.core.errors import ImageError
        from diptych.images.decode import decode

        compared = []
        for image in images:
            try:
                compared.append(decode(image))
            except ImageError:
                continue
            if len(compared) == _COMPARED:
                break
        if compared:
            least = clip.min_cosine_to_fp32(compared)
            say(f"{self.precision}: cosine with fp32 {least:.5f} or more, over {len(compared)} of the pictures")


DEFAULT_LOADING = Loading()
