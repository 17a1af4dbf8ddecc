"""Contact sheets that show training samples after preprocessing."""

from dataclasses import replace

from PIL import Image

from diptych.bundle.resolve_towers import encoder_tokenizer
from diptych.core.address import redacted
from diptych.data.batches.loader import Example
from diptych.data.open_source import open_source
from diptych.data.sources.subset import take_few
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.models.third_party_config import TransformersConfig
from diptych.tokenizers.load_tokenizer import train_tokenizer
from diptych.training.config import TrainConfig
from diptych.training.setup import training_examples
from diptych.training.starting_point import with_resolved_towers

_MAX_CAPTIONS_FROM = 2000
"""Maximum number of samples whose captions train the tokenizer of a preview, so that it takes seconds."""


def training_preview(spec: str, config: TrainConfig, *, num: int, seed: int) -> Image.Image:
    """A contact sheet of augmented training images, each with the decoded text of its tokens.

    The captions are encoded and decoded by the tokenizer, so that the sheet shows what it loses.

    Args:
        spec: address of the data source.
        config: the run whose preprocessing is applied.
        num: maximum number of samples.
        seed: selects the crops and captions.

    Raises:
        DataError: the source cannot be read, or a sample cannot be read.
    """
    source = open_source(spec)
    config = with_resolved_towers(config)
    text = config.model.text
    subset = take_few(source, _MAX_CAPTIONS_FROM)
    captions = (caption for i in range(len(subset)) for caption in subset.captions(i))
    if isinstance(text, TransformersConfig) and text.tokenizer == "pretrained":
        tokenizer = encoder_tokenizer(config.model)
    else:
        tokenizer = train_tokenizer(
            text.tokenizer, captions, vocab_size=text.vocab_size, context_length=text.context_length
        )
    samples = take_few(source, num)
    examples = training_examples(samples, replace(config, seed=seed))
    pictures = []
    for i in range(len(samples)):
        row = examples[0, i]
        if not isinstance(row, Example):
            raise row
        encoded = tokenizer.encode([row.caption])
        pictures.append((Image.fromarray(row.pixels.transpose(1, 2, 0)), tokenizer.decode(encoded.ids[0].tolist())))
    return contact_sheet([SheetRow(redacted(spec), pictures)], columns=4, tile_px=200, caption_lines=4)
