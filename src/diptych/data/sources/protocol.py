"""The contract of every source: a sequence of samples with random access."""

from typing import Protocol, runtime_checkable

from diptych.core.sample import Sample


@runtime_checkable
class Source(Protocol):
    """`len(source)`, `source[i] -> Sample`. Picklable, the same in every process."""

    classes: tuple[str, ...]
    """Names of the labels; empty if the samples have none."""
    templates: tuple[str, ...]
    """Prompts with `{}` for a label's name, in the words of the captions; empty if the source has no words of its own."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, index: int, /) -> Sample:
        """The sample; its image may still be a path that is not opened."""

    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions, without its image."""

    def key(self, index: int) -> str:
        """The sample's key, without making the sample."""

    def split(self, index: int) -> str | None:
        """The split the source itself puts the sample in; None if it leaves that to a hash of the key."""
