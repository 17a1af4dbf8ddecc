"""Write the two towers of a model as ONNX graphs with embeddings of unit length.

The graphs accept any number of images or texts, and texts of any length. They are traced from the model's own modules. The text
tower uses padded sequences (`SequenceLayout.padded`) instead of packed ones.

Shapes: B images or texts, T tokens of the longest text, C context length, H W height and width in pixels, E embedding.
"""

import copy
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import jaxtyping
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from diptych.core.errors import ConfigError
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import TextConfig
from diptych.models.text_transformer import TextTransformer
from diptych.models.transformers_tower import TransformersTower

if TYPE_CHECKING:
    import onnx_ir

Module = TypeVar("Module", bound=nn.Module)

OPSET = 20
"""Opset version. The exporter supports 18 and above; from 23 on, onnxruntime rejects the boolean masks that it writes."""
MAX_INLINE_BYTES = 1024
"""Tensors above this size in bytes are stored in a data file next to the graph, which onnxruntime maps into memory."""
TOWER = "tower"
"""Metadata key of a graph for its kind of tower: "text", or the `kind` of the image tower's config."""
BATCH, TEXT_LENGTH = "batch_size", "text_length"
"""Names of the symbolic dimensions."""
_NO_METADATA: Mapping[str, str] = MappingProxyType({})
_EXAMPLES = 3
_NOT_MODELS = (str(Path(torch.__file__).parent), __file__)
"""Path prefixes of source files that error messages skip, because they contain no model code."""


def data_path(graph: Path) -> Path:
    """Return the path of the file with the large tensors of a graph.

    >>> data_path(Path("onnx/text_model.onnx")).name
    'text_model.onnx_data'
    """
    return graph.with_name(f"{graph.name}_data")


def write_image_graph(model: CLIP, path: Path, *, metadata: Mapping[str, str] = _NO_METADATA) -> None:
    """Write the image tower: normalized `pixel_values` (B, 3, H, W) -> `image_embeds` (B, E) of unit length, both float32.

    Large tensors are written to `data_path(path)`. Existing files are replaced.

    Args:
        model: the model; its weights are written in float32.
        path: the file to write, usually with the suffix `.onnx`. Its folder must exist.
        metadata: names and values that are stored in the graph (`metadata_props`).

    Raises:
        ConfigError: the image tower contains an operator that ONNX cannot express; the message names it.
    """
    height, width = height_width(model.config.image.image_px)
    graph = _export(
        _ImageGraph(as_float32(model.image_tower)),
        {"pixel_values": torch.zeros(_EXAMPLES, 3, height, width)},
        dims={"pixel_values": {0: BATCH}},
        output="image_embeds",
        what="image tower",
    )
    save_graph(graph, path, metadata={**metadata, TOWER: model.config.image.kind})


def write_text_graph(
    model: CLIP,
    path: Path,
    *,
    end_id: int | None,
    pad_id: int = 0,
    stops_at_end: bool = True,
    metadata: Mapping[str, str] = _NO_METADATA,
) -> None:
    """Write the text tower: int64 `input_ids`, `attention_mask` (B, T) -> float32 `text_embeds` (B, E) of unit length.

    Padding must follow the tokens of a text. If the tokenizer stops at the end token, the graph ignores everything after the
    first one, as `encode_text` does. It truncates texts to the context length and replaces the last remaining token of a
    truncated text with the end token. In SigLIP's layout it pads texts to the context length, and the attention mask may also
    count the padding. A text without tokens counts as one token of padding. Large tensors are written to `data_path(path)`.
    Existing files are replaced.

    Args:
        model: the model; its weights are written in float32.
        path: the file to write, usually with the suffix `.onnx`. Its folder must exist.
        end_id: id of the end token (`Tokenizer.end_id`); None if there is none.
        pad_id: id of the padding (`Tokenizer.pad_id`).
        stops_at_end: whether a text ends at its first end token (`Tokenizer.stops_at_end`); if False, it ends at the padding.
        metadata: names and values that are stored in the graph (`metadata_props`).

    Raises:
        ConfigError: the text tower contains an operator that ONNX cannot express; the message names it.
    """
    tower = as_float32(model.text_tower)
    example = torch.full((_EXAMPLES, 2), pad_id if end_id is None else end_id)
    graph = _export(
        _TextGraph(tower, end_id=end_id, pad_id=pad_id, stops_at_end=stops_at_end),
        {"input_ids": example, "attention_mask": torch.ones_like(example)},
        dims={name: {0: BATCH, 1: TEXT_LENGTH} for name in ("input_ids", "attention_mask")},
        max_length=model.config.text.context_length,
        output="text_embeds",
        what="text tower",
    )
    _cut_inputs(graph, length=model.config.text.context_length)
    save_graph(graph, path, metadata={**metadata, TOWER: "text"})


class _ImageGraph(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        return functional.normalize(self.tower(pixel_values), dim=-1)


class _TextGraph(nn.Module):
    def __init__(
        self, tower: TextTransformer | TransformersTower, *, end_id: int | None, pad_id: int, stops_at_end: bool
    ) -> None:
        super().__init__()
        self.tower, self.end_id, self.pad_id, self.stops_at_end = tower, end_id, pad_id, stops_at_end

    def forward(self, input_ids: Int64[Tensor, "B T"], attention_mask: Int64[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length of texts with at most C tokens."""
        config = self.tower.config
        context_length, is_siglip = config.context_length, isinstance(config, TextConfig) and config.layout == "siglip"
        position = torch.arange(input_ids.shape[1])
        is_given = (attention_mask != 0) | (position == 0)
        ids = torch.where(attention_mask != 0, input_ids, self.pad_id)
        if self.end_id is not None:
            # Some tokenizers truncate without restoring the end token. A complete text of C tokens already has it here.
            is_last = is_given & (position == context_length - 1)
            if is_siglip:  # Some tokenizers pad to C tokens and count the padding in the mask.
                is_last &= ids != self.pad_id
            ids = torch.where(is_last, self.end_id, ids)
        if is_siglip:
            filling = ids.new_full((ids.shape[0], context_length), self.pad_id)
            ids = torch.cat([ids, filling], dim=1)[:, :context_length]
            return functional.normalize(self.tower.encode_padded(ids, torch.ones_like(ids, dtype=torch.bool)), dim=-1)
        if self.end_id is None or not self.stops_at_end:
            return functional.normalize(self.tower.encode_padded(ids, is_given), dim=-1)
        is_end = ((ids == self.end_id) & is_given).long()
        is_token = is_given & (is_end.cumsum(dim=1) == is_end)  # No end token precedes it.
        return functional.normalize(self.tower.encode_padded(ids, is_token), dim=-1)


def as_float32(module: Module) -> Module:
    """Return a module in float32, in evaluation mode and on the CPU. It is copied only if it must be converted."""
    is_ready = not any(part.training for part in module.modules()) and all(
        tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.int64)
        for tensor in module.state_dict().values()
    )
    return module if is_ready else copy.deepcopy(module).cpu().float().eval()


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    dims: Mapping[str, Mapping[int, str]],
    output: str,
    what: str,
    max_length: int | None = None,
) -> "onnx_ir.Model":
    """Return a module as an ONNX graph with the given symbolic dimensions.

    Raises:
        ConfigError: an operator cannot be traced or expressed in ONNX, or a dimension became a constant.
    """
    symbols = {BATCH: Dim(BATCH), TEXT_LENGTH: Dim(TEXT_LENGTH, max=max_length)}
    shapes = tuple({axis: symbols[name] for axis, name in dims[key].items()} for key in inputs)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
            result = torch.onnx.export(
                program,
                input_names=list(inputs),
                output_names=[output],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # The exporter also raises the exceptions of the traced code.
            raise ConfigError(f"the {what} cannot be written as ONNX: {_reason(error)}") from None
    assert result is not None
    graph = result.model
    _name_dims(graph, {**dims, output: {0: BATCH}}, what=what)
    _strip(graph)
    return graph


def _name_dims(graph: "onnx_ir.Model", dims: Mapping[str, Mapping[int, str]], *, what: str) -> None:
    """Name the symbolic dimensions of the inputs and outputs.

    Raises:
        ConfigError: one of them is constant, so the graph would only work for the sizes of the example inputs.
    """
    for value in [*graph.graph.inputs, *graph.graph.outputs]:
        assert value.shape is not None
        for axis, name in dims[str(value.name)].items():
            if isinstance(value.shape[axis], int):
                raise ConfigError(
                    f"the {what} cannot be written as ONNX: an operator fixes {name} of {value.name} to {value.shape[axis]}"
                )
            value.shape[axis] = name


def _strip(graph: "onnx_ir.Model") -> None:
    """Remove debug information: source lines, which contain local paths, and the shapes of intermediate values."""
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    graph.doc_string = graph.graph.doc_string = None
    ends = {*graph.graph.inputs, *graph.graph.outputs}
    values = [*ends, *graph.graph.initializers.values()]
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        if value.producer() is not None and value not in ends:
            value.shape = None


def _cut_inputs(graph: "onnx_ir.Model", *, length: int) -> None:
    """Truncate each input to `length` columns, because the traced code has position embeddings only up to there."""
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    first = graph.graph[0]
    bounds = []
    for name, number in (("cut_start", 0), ("cut_end", length), ("cut_axis", 1)):
        bound = onnx_ir.Value(name=name, const_value=onnx_ir.tensor([number], dtype=onnx_ir.DataType.INT64, name=name))
        graph.graph.register_initializer(bound)
        bounds.append(bound)
    for value in graph.graph.inputs:
        uses = list(value.uses())
        cut = onnx_ir.node("Slice", [value, *bounds])
        cut.outputs[0].name = f"{value.name}_cut"
        cut.outputs[0].type = value.type
        for node, position in uses:
            node.replace_input_with(position, cut.outputs[0])
        graph.graph.insert_before(first, cut)


def save_graph(graph: "onnx_ir.Model", path: Path, *, metadata: Mapping[str, str] = _NO_METADATA) -> None:
    """Write a graph, and its large tensors to `data_path(path)`. Existing files are replaced.

    Args:
        graph: the graph. Its tensors must not be backed by the files that are replaced.
        path: the file to write.
        metadata: names and values to add to the metadata of the graph.
    """
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    graph.metadata_props.update(metadata)
    data = data_path(path)
    for file in (path, data):
        file.unlink(missing_ok=True)
    onnx_ir.save(graph, path, external_data=data.name, size_threshold_bytes=MAX_INLINE_BYTES)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's output, and disable jaxtyping's checks, which would make symbolic dimensions constant."""
    is_unchecked, is_logged = jaxtyping.config.jaxtyping_disable, logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", is_unchecked)
            logging.disable(is_logged)


def _reason(error: BaseException) -> str:
    """One line that says why a module cannot be exported, with the name of the operator or the line of model code."""
    traced = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_MODELS)
    ]
    while error.__cause__ is not None:
        error = error.__cause__
    message = str(error)
    if operator := re.search(r"OpOverload\(op='([^']+)'", message):
        return f"ONNX has no equivalent of the operator {operator[1]}"
    if fixed := re.search(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", message):
        return f"an operator fixes {fixed[1]} to {fixed[2]}"
    summary = f"{type(error).__name__}: {next(iter(message.splitlines()), ''):.200}"
    return f"{summary} (in `{traced[-1].line}`)" if traced and traced[-1].line else summary
