"""The tokenizer from the cache, where there is no room for temporary files."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest

from diptych.core.array_cache import ArrayCache
from diptych.tokenizers.kept import kept_or_trained
from diptych.tokenizers.load_tokenizer import TokenizerKind

_CAPTIONS = ["a dog on a meadow", "a cat on a sofa"]


def _ids(kind: TokenizerKind) -> list[int]:
    tokenizer = kept_or_trained(kind, _CAPTIONS, captions_hash="x", vocab_size=300, context_length=16)
    return tokenizer.encode(_CAPTIONS).ids.flatten().tolist()


@pytest.mark.parametrize("kind", ["character", "learned-bpe"])
def test_no_room_for_temporary_files_fails_nothing(
    kind: TokenizerKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    full = patch.object(Path, "write_bytes", side_effect=OSError(28, "No space left on device"))
    with patch.object(tempfile, "tempdir", str(tmp_path / "none")):
        expected = _ids(kind)
    assert not list(ArrayCache().folder.glob("*.npz"))
    with patch(
        "diptych.tokenizers.learned_bpe.LearnedBPETokenizer.save", side_effect=Exception("No space left on device")
    ):
        assert _ids(kind) == expected
    assert _ids(kind) == expected
    assert len(list(ArrayCache().folder.glob("*.npz"))) == 1
    with patch.object(tempfile, "tempdir", str(tmp_path / "none")):
        assert _ids(kind) == expected
    with full:
        assert _ids(kind) == expected
