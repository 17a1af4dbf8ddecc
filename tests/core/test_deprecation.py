"""Old names still work, with a warning."""

import pytest

from diptych.core.deprecation import renamed_parameter
from diptych.evaluation import rendering
from diptych.index import approximate, entry, vector_file


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (entry, "Found", "SearchHit"),
        (entry, "Stamp", "FileStat"),
        (approximate, "About", "AnnInfo"),
        (approximate, "Kind", "AnnKind"),
        (vector_file, "Kind", "VectorDtype"),
        (rendering, "tell_zero_shot", "render_zero_shot"),
    ],
)
def test_an_old_name_of_a_module_is_an_alias(module: object, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated; use {new}"):
        value = getattr(module, old)
    assert value is getattr(module, new)
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = module.Nothing  # type: ignore[attr-defined]


def test_an_old_keyword_argument_is_passed_by_its_new_name() -> None:
    @renamed_parameter("chosen", "selected")
    def search(*, selected: int) -> int:
        return selected

    assert search(selected=3) == 3
    with pytest.warns(DeprecationWarning, match="chosen of .*search is deprecated; use selected"):
        assert search(chosen=4) == 4  # type: ignore[call-arg]
