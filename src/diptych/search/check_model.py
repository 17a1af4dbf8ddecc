"""Check that a model fits an index: its embeddings can be compared with the vectors, or be added to them."""

import re

from diptych.core.errors import IndexingError
from diptych.index.protocol import Index
from diptych.inference.loaded_bundle import LoadedBundle


def check_model(index: Index, clip: LoadedBundle, *, adds: bool = False) -> None:
    """Check that the embeddings of a model can be compared with the vectors of an index, or be added to them.

    The index may store any identity of the model, including those of earlier versions. Embeddings of an int8 or fp16 ONNX
    export can be compared with those of the model, but an index contains vectors of only one precision.

    Args:
        index: the index.
        clip: the model.
        adds: whether vectors will be added.

    Raises:
        IndexingError: the vectors come from another model, or `adds` is True and they were computed in another precision. The
            index is closed.
    """
    if _base_of(index.model) not in clip.base_identities:
        index.close()
        raise IndexingError(
            f"{index.place}: has vectors of the model {index.model} ({index.bundle}), and {clip.path} is {clip.identity}: "
            "their numbers do not compare; make another index for it"
        )
    if adds and index.model not in clip.identities:
        index.close()
        raise IndexingError(
            f"{index.place}: has vectors of {index.bundle} ({index.model}), and {clip.path} is the same model in another "
            f"precision ({clip.identity}): it can search the index, but not add to it"
        )


def _base_of(identity: str) -> str:
    """The identity of a model without the suffix of an ONNX export in a lower precision.

    >>> _base_of("0123-int8-89abcdef"), _base_of("0123")
    ('0123', '0123')
    """
    return re.sub(r"-(int8|fp16)-[0-9a-f]{8}$", "", identity)
