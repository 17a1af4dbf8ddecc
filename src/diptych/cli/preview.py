"""What a model will see in training, as a picture for people."""

from dataclasses import replace

from PIL import Image

from diptych.core.address import redacted
from diptych.data.batches.loader import Example
from diptych.data.open_source import open_source
from diptych.data.sources.subset import take_few
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.tokenizers.load_tokenizer import train_tokenizer
from diptych.training.config import TrainConfig
from diptych.training.setup import training_examples

_MAX_CAPTIONS_FROM = 2000
"""Samples that a tokenizer for the preview is made from: enough words, in seconds."""


def training_preview(spec: str, config: TrainConfig, *, num: int, seed: int) -> Image.Image:
    """A sheet of samples as the run would get them: cropped, flipped and resized, over the text of their tokens.

    The captions went through the tokenizer and back, so that what it loses is missing here, too.

    Raises:
        DataError: the source cannot be read, or none of the samples can.
    """
    source = open_source(spec)
    text = config.model.text
    few = take_few(source, _MAX_CAPTIONS_FROM)
    captions = (caption for i in range(len(few)) for caption in few.captions(i))
    tokenizer = train_tokenizer(
        text.tokenizer, captions, vocab_size=text.vocab_size, context_length=text.context_length
    )
    shown = take_few(source, num)
    examples = training_examples(shown, replace(config, seed=seed))
    pictures = []
    for i in range(len(shown)):
        row = examples[0, i]
        if not isinstance(row, Example):
            raise row
        encoded = tokenizer.encode([row.caption])
        pictures.append((Image.fromarray(row.pixels.transpose(1, 2, 0)), tokenizer.decode(encoded.ids[0].tolist())))
    return contact_sheet([SheetRow(redacted(spec), pictures)], columns=4, tile_px=200, caption_lines=4)
