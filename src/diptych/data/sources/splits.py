"""A source cut into its splits, by a rule that has a version."""

from collections import Counter

from diptych.core.errors import ConfigError, DataError
from diptych.core.randomness import stable_fraction
from diptych.data.sources.copies import copy_groups
from diptych.data.sources.protocol import Source
from diptych.data.sources.split_names import usual_name
from diptych.data.sources.subset import Subset

SPLIT_RULE = 2
"""The current rule. Runs and bundles store theirs: 1 is that of runs that store none."""
FIRST_SPLIT_RULE = 1


class Splits:
    """A source cut into its splits: its own where it has them, else `train` and `val` by a hash of the split key.

    A source with splits of its own but no `val` gets one cut from its `train`.

    Under rule 2, samples whose pictures are equal to the byte are assigned together: by the smallest of their split keys, or
    to the split that the source names for one of them. `validation`, `valid` and `dev` mean `val` for every source.

    Under rule 1, a sample that the hash puts into `val` although `train` has the same picture stays in `train`, names are
    taken as they are, and keys are those of that version.

    Args:
        source: what is cut.
        val_fraction: the share of `val`, within (0, 1).
        rule: 1 or 2.

    Raises:
        ConfigError: `val_fraction` is not within (0, 1).
    """

    def __init__(self, source: Source, *, val_fraction: float = 0.05, rule: int = SPLIT_RULE) -> None:
        if not 0 < val_fraction < 1:
            raise ConfigError(f"val_fraction is {val_fraction}; it must lie within (0, 1)")
        is_first = rule == FIRST_SPLIT_RULE
        self.source = source.under_first_rule() if is_first else source
        own = [self.source.split(i) for i in range(len(source))]
        if not is_first:
            own = [usual_name(name) for name in own]
        self.has_own_val = "val" in own
        free = [i for i, name in enumerate(own) if name is None or (name == "train" and not self.has_own_val)]
        self.names = [name or "train" for name in own]
        """The split of each sample."""
        for i in free:
            if stable_fraction(self.source.split_key(i), "split") < val_fraction:
                self.names[i] = "val"
        if is_first:
            self._keep_copies_in_train(free)
        elif free:
            self._assign_copies_together(set(free))

    def _keep_copies_in_train(self, free: list[int]) -> None:
        for group in copy_groups(self.source, free, apart_in=self.names):
            for i in group:
                self.names[i] = "train"

    def _assign_copies_together(self, free: set[int]) -> None:
        for group in copy_groups(self.source, range(len(self.names)), apart_in=self.names):
            fixed = [self.names[i] for i in group if i not in free]
            leader = min(group, key=self.source.split_key)
            name = ("train" if "train" in fixed else fixed[0]) if fixed else self.names[leader]
            for i in free.intersection(group):
                self.names[i] = name

    def take(self, split: str) -> Subset:
        """The samples of a split; `all` is every one.

        Raises:
            DataError: there is no such split (the known ones are named with their sizes).
        """
        if split == "all":
            return Subset(self.source, range(len(self.source)))
        indices = [i for i, name in enumerate(self.names) if name == split]
        if not indices:
            sizes = ", ".join(f"{name} ({size})" for name, size in Counter(self.names).items())
            num = len(self.source)
            raise DataError(f"the data has no split '{split}'; it has: {sizes or 'nothing'}, and all ({num})")
        return Subset(self.source, indices)


def take_split(source: Source, split: str, *, val_fraction: float = 0.05, rule: int = SPLIT_RULE) -> Subset:
    """The samples of a split, as `Splits` cuts them.

    Raises:
        DataError: there is no such split (the known ones are named with their sizes).
    """
    if split == "all":
        return Subset(source.under_first_rule() if rule == FIRST_SPLIT_RULE else source, range(len(source)))
    return Splits(source, val_fraction=val_fraction, rule=rule).take(split)
