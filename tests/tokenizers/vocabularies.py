"""Small vocabularies in the layouts of real models, trained on the project's own sentences, and texts in many scripts."""

import io
import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages

from diptych.tokenizers.clip_bpe import MARKS, NAMES, clip_merges, clip_vocabulary
from tests import peers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "Latin": (0x41, 0x17F), "Greek": (0x391, 0x3CE), "Cyrillic": (0x410, 0x44F), "Armenian": (0x531, 0x586),
    "Hebrew": (0x5D0, 0x5EA), "Arabic": (0x621, 0x64A), "Devanagari": (0x904, 0x939), "Bengali": (0x985, 0x9B9),
    "Gurmukhi": (0xA05, 0xA39), "Tamil": (0xB85, 0xBB9), "Telugu": (0xC05, 0xC39), "Thai": (0xE01, 0xE3A),
    "Lao": (0xE81, 0xEB0), "Tibetan": (0xF40, 0xF6C), "Georgian": (0x10A0, 0x10FF), "Hangul": (0xAC00, 0xD7A3),
    "Ethiopic": (0x1200, 0x1248), "Hiragana": (0x3041, 0x3096), "Katakana": (0x30A1, 0x30FA), "Han": (0x4E00, 0x9FA5),
    "Emoji": (0x1F300, 0x1F64F), "Full width": (0xFF01, 0xFF5E),
}  # fmt: skip
"""First and last character of a block, by script."""
BETWEEN = [
    " ",
    "  ",
    ", ",
    ". ",
    "-",
    "_",
    "! ",
    "\t",
    "\n",
    " (",
    ") ",
    "'s ",
    "\xa0",
    "\u3000",
    "e\u0301",
    "&",
    " 7",
    "#1 ",
]


@cache
def sentences() -> tuple[str, ...]:
    """Lines of the project's documents, without those that may contain a special token."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = (line.strip(" #*->|`") for path in files for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(line for line in lines if len(line) > 10 and not {"<", "["} & set(line)))


@cache
def corpus(num: int = 10_000) -> tuple[str, ...]:
    """Return distinct texts: the project's sentences, as they are and changed, and random words of all scripts."""
    generator, found = random.Random(7), dict[str, None]()
    given = sentences()
    while len(found) < num:
        scripts = generator.sample([*SCRIPTS], generator.choice([1, 1, 2, 3]))
        words = [_word(generator, *SCRIPTS[generator.choice(scripts)]) for _ in range(generator.randint(1, 8))]
        text = "".join(word + generator.choice(BETWEEN) for word in words)
        kind = generator.random()
        if kind < 0.4:
            sentence = generator.choice(given)
            text = generator.choice(
                [sentence, sentence.upper(), sentence.title(), f"{sentence} {text}", sentence[3:40]]
            )
        found[text] = None
    return tuple(found)


def _word(generator: random.Random, first: int, last: int) -> str:
    word = "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 9)))
    return generator.choice([word, word.upper(), word.title(), word.lower()])


@cache
def sentence_model(model_type: str, **options: Any) -> bytes:
    """Return a sentencepiece model of 800 entries."""
    written = io.BytesIO()
    lines = iter([*sentences(), *(line.lower() for line in sentences())])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=written, vocab_size=800, model_type=model_type, minloglevel=2, **options
    )
    return written.getvalue()


def t5_model() -> bytes:
    """T5's layout: unigram, padding 0, end 1, unknown 2, no start."""
    return sentence_model("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def write_siglip(folder: Path) -> Any:
    """Write `spiece.model` and the settings of SigLIP's tokenizer, and return transformers' tokenizer."""
    (folder / "source.model").write_bytes(t5_model())
    tokenizer = peers.transformers.SiglipTokenizer(str(folder / "source.model"))
    tokenizer.save_pretrained(folder)
    (folder / "source.model").unlink()
    return tokenizer


def write_t5(folder: Path, **options: Any) -> Any:
    """Write the `tokenizer.json` of T5's layout, and return transformers' tokenizer."""
    pieces, charsmap = _pieces(t5_model())
    tokenizer = peers.transformers.T5Tokenizer(
        vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=charsmap, model_max_length=64, **options
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_xlm_roberta(folder: Path) -> Any:
    """Write the `tokenizer.json` of XLM-R, whose first four ids are fairseq's, and return transformers' tokenizer."""
    pieces, charsmap = _pieces(sentence_model("unigram", unk_id=0, bos_id=1, eos_id=2, pad_id=-1))
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = peers.transformers.XLMRobertaTokenizer(
        vocab=[*special, *pieces[3:], ("<mask>", 0.0)], _spm_precompiled_charsmap=charsmap, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_siglip_2(folder: Path) -> Any:
    """Write the `tokenizer.json` of SigLIP 2, which has Gemma's layout, and return transformers' tokenizer."""
    engine = Engine(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")  # Only to train: shorter entries.
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, show_progress=False, max_token_length=12, limit_alphabet=120
    )
    engine.train_from_iterator(sentences(), trainer)
    model = _model_of(engine)
    tokenizer = peers.transformers.Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
        model_max_length=64,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _model_of(engine: Engine) -> dict[str, Any]:

    content: dict[str, Any] = json.loads(engine.to_str())["model"]
    return content


def _pieces(model: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """The entries with their scores, and the map of characters, of a sentencepiece model."""
    content = messages.ModelProto.FromString(model)  # type: ignore[attr-defined]
    return [(piece.piece, piece.score) for piece in content.pieces], content.normalizer_spec.precompiled_charsmap


def without_special(texts: tuple[str, ...]) -> list[str]:
    """The texts that contain no name of a special token."""
    return [text for text in texts if not re.search(r"<\S+>|\[[A-Z]+\]", text)]


def write_clip(folder: Path) -> Any:
    """Write the files of transformers' `CLIPTokenizer` with CLIP's own vocabulary, and return that tokenizer."""
    names = dict(zip(MARKS, NAMES["openai"], strict=True))
    vocabulary = {names.get(entry, entry): i for entry, i in clip_vocabulary().items()}
    tokenizer = peers.transformers.CLIPTokenizer(vocab=vocabulary, merges=clip_merges(), model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer
