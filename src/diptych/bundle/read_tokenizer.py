"""Read the tokenizer of a bundle or of an ONNX folder."""

from pathlib import Path

from diptych.core.errors import BundleError
from diptych.models.config import CLIPConfig
from diptych.tokenizers.load_tokenizer import load_tokenizer
from diptych.tokenizers.protocol import Tokenizer


def read_tokenizer(config: CLIPConfig, path: Path) -> Tokenizer:
    """Return the tokenizer of a model from a file that `Tokenizer.save` wrote.

    Raises:
        BundleError: the file is damaged, or its vocabulary size differs from that of the model.
        OSError: the file cannot be read.
    """
    text = config.text
    try:
        tokenizer = load_tokenizer(text.tokenizer, path, context_length=text.context_length)
    except BaseException as error:
        # The `tokenizers` library raises plain exceptions, and a `PanicException`, which does not derive from `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
        raise BundleError(f"{path}: is damaged ({reason:.200})") from None
    if tokenizer.vocab_size != text.vocab_size:
        raise BundleError(
            f"{path.parent}: its tokenizer has {tokenizer.vocab_size} entries, its model {text.vocab_size}"
        )
    return tokenizer
