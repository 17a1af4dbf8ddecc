"""Nothing that encodes text bypasses a model's text preparation."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import diptych
from diptych.bundle.folder import Bundle
from diptych.core.errors import ConfigError
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.preparation import TextPreparation
from tests.tokenizers.makers import PREPARATION, make_tokenizer

SOURCE = Path(diptych.__file__).parent
ENGINES = {"tokenizers", "sentencepiece", "transformers", "open_clip"}
ENGINE_USES = {
    "export/onnx_folder.py": "compares an exported tokenizer.json with the tokenizer of the bundle",
    "models/third_party.py": "imports transformers for its towers",
}
"""Files outside of `tokenizers/` that may import a library which tokenizes, and why."""
CLASS_USES = {
    "bundle/foreign_tokenizer.py": "reads the tokenizer of a folder together with its preparation",
    "bundle/open_bundle.py": "CLIP's tokenizer for a file of weights, with the preparation in its config",
    "data/tools/audit.py": "counts tokens of captions, and encodes nothing for a model",
}
"""Files outside of `tokenizers/` that may name a tokenizer class, and why."""
CLASSES = {
    *("CharacterTokenizer", "ClipBPETokenizer", "HashingTokenizer", "LearnedBPETokenizer", "PretrainedTokenizer"),
    "SentencePieceTokenizer",
}


def _found(matches: Callable[[ast.AST], bool]) -> set[str]:
    files = [path for path in SOURCE.rglob("*.py") if path.parent.name != "tokenizers"]
    return {
        path.relative_to(SOURCE).as_posix()
        for path in files
        if any(map(matches, ast.walk(ast.parse(path.read_text("utf-8")))))
    }


def _imports_engine(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and (node.module or "").partition(".")[0] in ENGINES
    return isinstance(node, ast.Import) and any(name.name.partition(".")[0] in ENGINES for name in node.names)


def _uses_class(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and CLASSES & {part.id for part in ast.walk(node.func) if isinstance(part, ast.Name)} != set()
    )


def test_no_file_tokenizes_on_its_own() -> None:
    assert _found(_imports_engine) <= ENGINE_USES.keys()
    assert "export/onnx_folder.py" in _found(_imports_engine)


def test_no_file_builds_a_tokenizer_on_its_own() -> None:
    assert _found(_uses_class) <= CLASS_USES.keys()
    assert "data/tools/audit.py" in _found(_uses_class)


def _bundle(preparation: TextPreparation, of_config: TextPreparation) -> Bundle:
    tokenizer = make_tokenizer("pretrained", preparation=preparation)
    text = TextConfig(
        tokenizer="pretrained",
        preparation=of_config,
        vocab_size=tokenizer.vocab_size,
        context_length=24,
        width=16,
        layers=1,
        heads=2,
    )
    image = ViTConfig(image_px=16, patch_px=16, width=16, layers=1, heads=2)
    return Bundle(model=CLIP(CLIPConfig(embed_dim=8, image=image, text=text)).eval(), tokenizer=tokenizer)


def test_a_bundle_refuses_a_tokenizer_with_another_preparation() -> None:
    with pytest.raises(ConfigError, match="but the config of the model has TextPreparation"):
        _bundle(PREPARATION, TextPreparation())


LOWER = TextPreparation(lowercase=True, remove_punctuation=True, start_id=2, end_id=3)


def test_the_embedder_prepares_texts() -> None:
    embedder = Embedder(_bundle(LOWER, LOWER))
    shouted, spoken = embedder.encode_texts(["TWO, DOGS!", "two dogs"])
    np.testing.assert_array_equal(shouted, spoken)
