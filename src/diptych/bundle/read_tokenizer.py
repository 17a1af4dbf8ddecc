"""Read the tokenizer of a bundle or of an ONNX folder."""

from collections.abc import Callable
from pathlib import Path

from diptych.core.errors import BundleError, ConfigError
from diptych.models.config import CLIPConfig
from diptych.tokenizers.load_tokenizer import PREPARED, load_tokenizer
from diptych.tokenizers.protocol import Tokenizer


def read_tokenizer(config: CLIPConfig, path: Path) -> Tokenizer:
    """Return the tokenizer of a model from a file that `Tokenizer.save` wrote.

    Raises:
        BundleError: the file is damaged, or its vocabulary size does not fit the model.
        ConfigError: the tokenizer is a sentencepiece model, and `sentencepiece` is not installed.
        OSError: the file cannot be read.
    """
    text = config.text
    return checked_tokenizer(
        config,
        path,
        lambda: load_tokenizer(text.tokenizer, path, context_length=text.context_length, preparation=text.preparation),
    )


def checked_tokenizer(config: CLIPConfig, path: Path, load: Callable[[], Tokenizer]) -> Tokenizer:
    """Return the result of `load` if it fits the model.

    Args:
        config: the config of the model.
        path: the file, for messages.
        load: function that reads the tokenizer.

    Raises:
        BundleError: `load` fails, or the vocabulary size does not fit the model.
        ConfigError: the tokenizer is a sentencepiece model, and `sentencepiece` is not installed.
    """
    text = config.text
    try:
        tokenizer = load()
    except BaseException as error:
        # The `tokenizers` library raises plain exceptions, and a `PanicException`, which does not derive from `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, ConfigError) and "pip install" in str(error):
            raise
        reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
        raise BundleError(f"{path}: is damaged ({reason:.200})") from None
    fits = tokenizer.vocab_size == text.vocab_size
    if text.tokenizer in PREPARED:  # Embeddings are often padded to a multiple of 64 rows.
        fits = tokenizer.vocab_size <= text.vocab_size
    if not fits:
        raise BundleError(
            f"{path.parent}: its tokenizer has {tokenizer.vocab_size} entries, its model {text.vocab_size}"
        )
    return tokenizer
