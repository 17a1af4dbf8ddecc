"""Old names return the renamed objects and emit a DeprecationWarning."""

from importlib import import_module

import pytest
import torch

from diptych.inference.loaded import LoadedBundle
from diptych.models.layers import Attention
from diptych.models.packing import pack


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("diptych.inference.uses", "FourUses", "ClipTasks"),
        ("diptych.inference.rank", "Ranked", "RankedItem"),
    ],
)
def test_a_renamed_class_or_function(module: str, old: str, new: str) -> None:
    home = import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated; use {new}"):
        assert getattr(home, old) is getattr(home, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = home.nothing


def test_a_renamed_attribute_is_read_and_written() -> None:
    attention = Attention(8, 2)
    seen: list[torch.Tensor] = []
    hook = seen.append
    with pytest.warns(DeprecationWarning, match="watcher is deprecated; use hook"):
        attention.watcher = hook
    assert attention.hook is hook
    with pytest.warns(DeprecationWarning, match="watcher is deprecated; use hook"):
        assert attention.watcher is hook
    packing = pack(torch.tensor([3, 2]), padded_to=None, device=torch.device("cpu"))
    for old, new in {"place": "gather_idx", "first": "start_idx", "last": "end_idx", "rank": "inverse_perm"}.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is deprecated; use {new}"):
            assert getattr(packing, old) is getattr(packing, new)


def test_a_renamed_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedBundle, "min_cosine_to_fp32", lambda _self, images: float(len(images)))
    clip = LoadedBundle.__new__(LoadedBundle)
    with pytest.warns(DeprecationWarning, match="min_cosine_to_fp32"):
        assert clip.agreement([1, 2, 3]) == 3
