"""rclip with the graphs of an ONNX export in place of its own, which it would download from the Hugging Face hub."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from diptych.tokenizers.clip_bpe import clip_merges

VERSION = "3.3.0"
_MODELS = "ViT-B-32-256-datacomp_s34b_b86k"
"""Folder in which rclip looks for its graphs."""
_FILL = """
import sys
import numpy as np
from rclip.db import DB
database = DB(sys.argv[1])
for number, vector in enumerate(np.load(sys.argv[2])):
    path = f"{sys.argv[3]}/{number}.jpg"
    row = {"filepath": path, "modified_at": 0, "size": 1, "vector": vector.tobytes(), "hash": None}
    database.upsert_image(row, commit=False)
database.close()
"""


def install(environment: Path) -> None:
    """Create an environment with rclip unless it exists."""
    if (environment / "bin" / "rclip").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"rclip=={VERSION}"], check=True)


def write_data(folder: Path, environment: Path, text_graph: Path, vectors: NDArray[np.float32]) -> None:
    """Write the folder in which rclip keeps its models and its index.

    Args:
        folder: the folder.
        environment: an environment with rclip.
        text_graph: the text graph of an ONNX export with CLIP's tokenizer.
        vectors: vectors of unit length of the pictures in the index, one per row.
    """
    (folder / _MODELS).mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in clip_merges())]
    with gzip.open(folder / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    _write_text_graph(text_graph, folder / _MODELS / "textual.onnx")
    (folder / _MODELS / "visual.onnx").touch()  # It must be there, and a search for a text does not read it.
    np.save(folder / "vectors.npy", vectors)
    fill = [
        str(environment / "bin/python"),
        "-c",
        _FILL,
        str(folder / "db.sqlite3"),
        str(folder / "vectors.npy"),
        str(folder),
    ]
    subprocess.run(fill, check=True)


def _write_text_graph(source: Path, target: Path) -> None:
    """Give a text graph rclip's only input: ids, padded with zeros."""
    model = onnx.load(source)
    graph = model.graph
    (ids,) = (value for value in graph.input if value.name == "input_ids")
    given = helper.make_tensor_value_info("input", TensorProto.INT64, ["batch_size", "text_length"])
    nodes = [
        helper.make_node("Identity", ["input"], [ids.name]),
        helper.make_node("Sign", ["input"], ["attention_mask"]),
        *graph.node,
    ]
    del graph.input[:]
    del graph.node[:]
    graph.input.append(given)
    graph.node.extend(nodes)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}_data")
