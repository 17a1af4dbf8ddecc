"""Make the packaged merges of CLIP's tokenizer from the file that OpenAI published.

    python scripts/make_clip_vocabulary.py SOURCE [TARGET]

SOURCE is `bpe_simple_vocab_16e6.txt.gz` from https://github.com/openai/CLIP/tree/main/clip. TARGET is the packaged file
unless named. The same source gives the same bytes every time.
"""

import argparse
import gzip
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import diptych.tokenizers
from diptych.tokenizers.clip_bpe import MERGES_FILE, NUM_MERGES, VOCABULARY_NAME, VOCABULARY_SHA256

PACKAGED = Path(diptych.tokenizers.__file__).parent / MERGES_FILE


def main() -> None:
    """Check the source, write the target; a source that is not OpenAI's ends with an error and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=PACKAGED)
    options = parser.parse_args()
    if not options.source.is_file():
        parser.error(f"{options.source}: no such file")
    published = options.source.read_bytes()
    if (found := sha256(published).hexdigest()) != VOCABULARY_SHA256:
        parser.error(
            f"{options.source}: its sha256 is {found}, that of OpenAI's {VOCABULARY_NAME} is {VOCABULARY_SHA256}; "
            "take the file from https://github.com/openai/CLIP/tree/main/clip"
        )
    options.target.write_bytes(packaged(published))


def packaged(published: bytes) -> bytes:
    """The merges that CLIP reads, one a line, without the published file's heading and its unused tail."""
    lines = gzip.decompress(published).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    buffer = BytesIO()
    # Neither time nor name in the header: the bytes depend on nothing but the merges.
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode("utf-8"))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
