"""ONNX Runtime sessions for the two graphs of an export: one per graph and process, created on first use.

Shapes: B inputs of a batch, H W pixels, T tokens of the longest text, E embedding.
"""

import os
import re
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.cpu import cores_of_rank
from diptych.core.errors import BundleError, ConfigError, unknown_name
from diptych.core.telemetry import disable_telemetry

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_SUFFIX = "ExecutionProvider"
_WITHOUT_PREPACKING = "session.disable_prepacking"
_CPU = "CPU"
_ON_CUDA = {"cuda", "tensorrt", "nvtensorrtrtx"}
_Kind: TypeAlias = Literal["image", "text"]


class OnnxDevice(NamedTuple):
    """The device of an execution provider."""

    type: str
    """"cuda" for CUDA and TensorRT, otherwise "cpu"."""

    def __str__(self) -> str:
        return self.type


class Sessions:
    """The two graphs of an ONNX folder. Threads can share them; a forked process and a copy create their own sessions."""

    def __init__(
        self,
        *,
        image: Path,
        text: Path,
        image_size: tuple[int, int],
        dim: int,
        provider: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Check the arguments. The graphs are loaded when they are first used.

        Args:
            image: the file of the image graph.
            text: the file of the text graph.
            image_size: height and width of the input of the image graph in pixels.
            dim: dimension of the embeddings.
            provider: execution provider of ONNX Runtime, such as "cuda", "coreml" or "openvino"; None for the CPU.
            threads: number of threads; None for `OMP_NUM_THREADS`, or else the number of cores that the process may use.

        Raises:
            ConfigError: ONNX Runtime has no such provider.
        """
        self._paths: dict[_Kind, Path] = {"image": image, "text": text}
        self._image_size, self._dim = image_size, dim
        self.provider = _CPU if provider is None else find_provider(provider)
        """Name of the execution provider, without the suffix "ExecutionProvider"."""
        self._threads = threads or _num_threads()
        self._sessions: dict[tuple[int, _Kind], InferenceSession] = {}
        self._locks: dict[int, Lock] = {}
        """A lock per process: a process that is forked while another thread holds the lock could never acquire it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sessions": {}, "_locks": {}}

    @property
    def device(self) -> OnnxDevice:
        """The device that computes."""
        return OnnxDevice("cuda" if self.provider.lower() in _ON_CUDA else "cpu")

    def open(self) -> None:
        """Read both graphs now.

        Raises:
            BundleError: a graph is damaged, does not fit the config, or needs a newer ONNX Runtime.
            ConfigError: the provider cannot be used on this machine.
        """
        for kind in self._paths:
            self._session(kind)

    def encode_pixels(self, pixel_values: Float32[ndarray, "B 3 H W"]) -> Float32[ndarray, "B E"]:
        """Return the embeddings of images, given as normalized pixels. They have unit length.

        Raises:
            BundleError: the graph cannot be read, or ONNX Runtime fails.
        """
        return self._run("image", {"pixel_values": pixel_values})

    def encode_ids(
        self, input_ids: Int64[ndarray, "B T"], attention_mask: Int64[ndarray, "B T"]
    ) -> Float32[ndarray, "B E"]:
        """Return the embeddings of texts, which have unit length. The mask is 1 at tokens and 0 at padding.

        Raises:
            BundleError: the graph cannot be read, or ONNX Runtime fails.
        """
        return self._run("text", {"input_ids": input_ids, "attention_mask": attention_mask})

    def _run(self, kind: _Kind, inputs: dict[str, Any]) -> Float32[ndarray, "B E"]:
        session = self._session(kind)
        try:
            (emb,) = session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's exceptions have no common public class.
            raise BundleError(f"{self._paths[kind]}: ONNX Runtime failed ({_first_words(error)})") from None
        return emb

    def _session(self, kind: _Kind) -> "InferenceSession":
        process = os.getpid()
        session = self._sessions.get((process, kind))
        if session is None:
            with self._locks.setdefault(process, Lock()):
                session = self._sessions.get((process, kind)) or self._open(kind)
                self._sessions[process, kind] = session
        return session

    def _open(self, kind: _Kind) -> "InferenceSession":
        disable_telemetry()
        from onnxruntime import InferenceSession, SessionOptions  # noqa: PLC0415  (the import takes 30 ms)

        options = SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Threads that spin while they wait slow down the threads that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if kind == "text":  # Prepacking triples the loading time and does not speed up batches of texts.
            options.add_session_config_entry(_WITHOUT_PREPACKING, "1")
        wanted = f"{self.provider}{_SUFFIX}"
        providers = list(dict.fromkeys((wanted, f"{_CPU}{_SUFFIX}")))
        path = self._paths[kind]
        try:
            # Without `enable_fallback=0`, ONNX Runtime prints to standard output and uses the CPU if a provider fails.
            session = InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions have no common public class.
            raise BundleError(f"{path}: ONNX Runtime cannot read it ({_first_words(error)})") from None
        if session.get_providers()[0] != wanted:
            raise ConfigError(f"ONNX Runtime cannot use the provider {self.provider.lower()} on this machine")
        self._check(kind, session)
        return session

    def _check(self, kind: _Kind, session: "InferenceSession") -> None:
        """Check that inputs and output of a graph have the names and sizes that the config implies.

        Raises:
            BundleError: they have others.
        """
        inputs = {given.name: given.shape for given in session.get_inputs()}
        outputs = [given.shape for given in session.get_outputs()]
        expected = {"image": {"pixel_values"}, "text": {"input_ids", "attention_mask"}}[kind]
        is_sized = kind == "text" or inputs.get("pixel_values", [])[1:] == [3, *self._image_size]
        has_output = len(outputs) == 1 and outputs[0][-1:] == [self._dim]
        if inputs.keys() != expected or not is_sized or not has_output:
            raise BundleError(f"{self._paths[kind]}: does not fit the config of its export; export the bundle again")


def _first_words(error: Exception) -> str:
    """The reason of an error of ONNX Runtime, without the names of its C++ functions."""
    words = " ".join(str(error).split())
    words = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(?:cc|h):\d+ \S.*?\) ", "", words)
    return f"{words:.160}" or type(error).__name__


def _num_threads() -> int:
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        return cores_of_rank()


def find_provider(name: str) -> str:
    """Return the name of an execution provider as ONNX Runtime spells it, without the suffix "ExecutionProvider".

    >>> find_provider("cpu")
    'CPU'

    Raises:
        ConfigError: the installed build of ONNX Runtime has no such provider.
    """
    disable_telemetry()
    from onnxruntime import get_available_providers  # noqa: PLC0415  (the import takes 30 ms)

    available = {full.removesuffix(_SUFFIX).lower(): full.removesuffix(_SUFFIX) for full in get_available_providers()}
    found = available.get(name.lower().removesuffix(_SUFFIX.lower()))
    if found is None:
        raise ConfigError(unknown_name("provider of this build of ONNX Runtime", name, available))
    return found
