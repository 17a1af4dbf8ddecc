"""Settings of a weights file that the user states, because the file does not contain them. Needs no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, cast, get_args

from diptych.core.errors import ConfigError, unknown_name
from diptych.models.config import Activation

WeightsChoice: TypeAlias = Literal["ema", "raw"]
"""Which weights of a checkpoint to use: averaged over the training steps (`ema`), or of the last step (`raw`)."""
Pooling: TypeAlias = Literal["cls", "mean", "eot", "last", "first"]
"""How tokens are pooled. `cls` and `mean` are for the image tower; `eot` (end token), `last` and `first` are for the text
tower, the latter two only without a causal mask."""
_IMAGE_POOLINGS = ("cls", "mean")
_TEXT_POOLINGS = ("eot", "last", "first")


def poolings(names: Sequence[str]) -> tuple[Pooling, ...]:
    """Return the names as poolings.

    >>> poolings(["mean", "last"])
    ('mean', 'last')

    Raises:
        ConfigError: there is no such pooling; the message names the closest one.
    """
    for name in names:
        if name not in get_args(Pooling):
            raise ConfigError(unknown_name("pooling", name, get_args(Pooling)))
    return tuple(cast("Pooling", name) for name in names)


@dataclass(frozen=True, kw_only=True)
class WeightsFacts:
    """Settings of a weights file that the user states, because the file does not contain them."""

    activation: Activation | None = None
    """The activation with which the model was trained; None if the file or the preset implies it."""
    preset: str | None = None
    """Name of the architecture; None to infer it from the tensors."""
    weights: WeightsChoice | None = None
    """Which weights of a training checkpoint to use; None for the averaged weights if the file has them."""
    heads: tuple[int, ...] | None = None
    """Numbers of attention heads of the image tower and the text tower, and for CoCa of the pooling; None to infer them."""
    pooling: tuple[Pooling, ...] | None = None
    """Pooling of the image tower, of the text tower, or of both; None for class token and end token."""
    is_causal: bool | None = None
    """Whether the text tower has a causal mask; None for True. Without a mask, it attends to the padding, as in open_clip."""

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ConfigError(unknown_name("activation", self.activation, get_args(Activation)))
        if self.heads is not None and (len(self.heads) not in (2, 3) or min(self.heads) < 1):
            raise ConfigError(
                f"heads is {','.join(map(str, self.heads))}; give one number for the image tower and one for the text tower, "
                "such as 12,8"
            )
        poolings(self.pooling or ())
        text = self._text_pooling
        if len(self.pooling or ()) != len(set(self.pooling or ())) or len(text) > 1 or len(self._image_pooling) > 1:
            raise ConfigError(
                f"pooling is {','.join(self.pooling or ())}; give at most one per tower, such as mean,last"
            )
        if self.is_causal is not False and text and text[0] != "eot":
            raise ConfigError(f"pooling is {text[0]}, which needs a text tower without a causal mask (--no-causal)")

    @property
    def _image_pooling(self) -> list[Pooling]:
        return [name for name in self.pooling or () if name in _IMAGE_POOLINGS]

    @property
    def _text_pooling(self) -> list[Pooling]:
        return [name for name in self.pooling or () if name in _TEXT_POOLINGS]

    @property
    def stated(self) -> list[str]:
        """Names of the settings that the user stated."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    @property
    def image_pooling(self) -> Literal["cls", "mean"]:
        """Pooling of the image tower."""
        return "mean" if self._image_pooling == ["mean"] else "cls"

    @property
    def text_pooling(self) -> Pooling:
        """Pooling of the text tower."""
        return next(iter(self._text_pooling), "eot")
