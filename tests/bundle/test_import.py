"""What is refused on the way in, and how: by name, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.bundle.bare_weights import inferred_config
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.open_clip_config import open_clip_config
from diptych.bundle.openai import openai_names
from diptych.bundle.renaming import to_theirs
from diptych.bundle.weights_facts import WeightsFacts
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, TimmConfig
from diptych.presets import PRESETS
from tests import peers
from tests.bundle.makers import SMALL, assert_refused


@pytest.fixture(scope="module")
def openai_weights(model: CLIP) -> dict[str, Tensor]:
    return to_theirs(model.state_dict(), openai_names(SMALL))


def test_a_bare_file_must_say_its_activation(openai_weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(openai_weights, tmp_path / "w.safetensors")
    assert_refused(tmp_path / "w.safetensors", r"does not say which activation .* --activation quick_gelu")
    assert (
        open_bundle(tmp_path / "w.safetensors", facts=WeightsFacts(activation="gelu")).config.own_text.activation
        == "gelu"
    )


def test_openais_own_marks_say_it(openai_weights: dict[str, Tensor], tmp_path: Path) -> None:
    marks = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    half = {name: tensor.half() for name, tensor in openai_weights.items()}
    torch.save({**half, **marks}, tmp_path / "ViT.pt")
    bundle = open_bundle(tmp_path / "ViT.pt")
    assert bundle.config.own_text.activation == "quick_gelu"
    assert bundle.config.image.activation == "quick_gelu"  # type: ignore[union-attr]
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}
    assert_refused(tmp_path / "ViT.pt", "trained with quick_gelu, not with gelu", activation="gelu")
    assert "square pictures" in bundle.origin["assumed"]


def test_a_torchscript_archive_as_openai_published_them(openai_weights: dict[str, Tensor], tmp_path: Path) -> None:
    class Holder(nn.Module):
        def forward(self) -> int:
            return 0

    root = Holder()
    for name, tensor in openai_weights.items():
        *parents, last = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Holder())
            node = node.get_submodule(parent)
        node.register_parameter(last, nn.Parameter(tensor))
    for mark, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(mark, torch.tensor(value))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(root), str(tmp_path / "archive.pt"))
    weights = open_bundle(tmp_path / "archive.pt").model.state_dict()
    expected = CLIP.from_weights(SMALL, dict(CLIP(SMALL).state_dict())).state_dict().keys()
    assert weights.keys() == expected
    assert torch.equal(weights["text_tower.token_emb.weight"], openai_weights["token_embedding.weight"])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "module.module."])
def test_prefixes_of_compiled_and_parallel_models(
    openai_weights: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    torch.save({"model": {prefix + name: t for name, t in openai_weights.items()}}, tmp_path / "w.pt")
    assert open_bundle(tmp_path / "w.pt", facts=WeightsFacts(activation="gelu")).config.image == SMALL.image


def test_a_training_checkpoint_of_open_clips(openai_weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Its prefix of a parallel model, its custom text tower, its temperature of one element."""
    text = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    wrapped = {f"module.{'text.' if name.startswith(text) else ''}{name}": t for name, t in openai_weights.items()}
    wrapped["module.logit_scale"] = wrapped["module.logit_scale"].reshape(1)
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
    weights = open_bundle(tmp_path / "epoch_3.pt", facts=WeightsFacts(activation="gelu")).model.state_dict()
    assert torch.equal(weights["image_tower.class_emb"], openai_weights["visual.class_embedding"])


def test_what_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return (Path(tmp_path / "ran").write_text, ("ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    assert_refused(tmp_path / "evil.pt", "cannot be read as weights")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04broken"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert_refused(path, f"weights{suffix}: cannot be read as weights")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1], {"state_dict": {}}, {"layer.weight": torch.zeros(2)}])
def test_files_that_hold_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "holds no weights by name|not in OpenAI's naming", activation="gelu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual.ln_pre.weight"), r"tensors are missing: visual\.ln_pre\.weight"),
        (lambda w: w.update({"visual.extra": torch.zeros(2)}), r"unexpected tensors: visual\.extra"),
        (lambda w: w.update({"visual.ln_post.bias": torch.zeros(3)}), r"visual\.ln_post\.bias is 3, expected 64"),
        (
            lambda w: w.update({"token_embedding.weight": torch.zeros(100, 64)}),
            "vocab_size is 100; clip-bpe has 49408 entries",
        ),
        (lambda w: w.update({"ln_final.weight": torch.zeros(96)}), "heads cannot be inferred.*--preset"),
        (
            lambda w: w.update({"ln_final.weight": torch.tensor(1.0)}),
            "is not in OpenAI's naming; its first tensors are",
        ),
        (lambda w: w.update({"visual.ln_post.bias": torch.full((64,), torch.nan)}), "not finite.*visual.ln_post.bias"),
        (lambda w: w.update({"visual.proj": w["visual.proj"].to(torch.complex64)}), "or not finite: visual.proj"),
        (lambda w: w.update({"logit_scale": torch.zeros(2)}), "logit_scale is 2, expected a single number"),
    ],
)
def test_weights_that_do_not_fit(
    openai_weights: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    weights = dict(openai_weights)
    change(weights)
    torch.save(weights, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", message, activation="gelu")


@pytest.mark.parametrize("name", ["rn50x4", "vit-l-14-336-quickgelu", "rn101-quickgelu", "cifar10-rn", "vit-h-14"])
def test_architecture_from_tensors_alone(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        shapes = to_theirs(CLIP(config).state_dict(), openai_names(config))
    inferred = inferred_config(shapes, WeightsFacts(activation=config.own_text.activation), tmp_path)
    assert (inferred.image, inferred.text, inferred.embed_dim) == (config.image, config.text, config.embed_dim)


@pytest.mark.parametrize(
    "name", ["ViT-H-14-378", "ViT-H-16", "ViT-g-14", "ViT-bigG-14", "ViT-e-14", "ViT-S-32", "ViT-B-32-256"]
)
def test_heads_that_no_shape_tells_are_those_of_the_peers_models(name: str, tmp_path: Path) -> None:
    """Heads of 64 numbers are a convention that open_clip's largest towers break."""
    config = open_clip_config({"model_cfg": peers.open_clip.get_model_config(name)})
    with torch.device("meta"):
        shapes = to_theirs(CLIP(config).state_dict(), openai_names(config))
    inferred = inferred_config(shapes, WeightsFacts(activation="gelu"), tmp_path)
    assert not isinstance(inferred.image, ConvNetConfig | TimmConfig)
    assert not isinstance(config.image, ConvNetConfig | TimmConfig)
    assert (inferred.image.heads, inferred.own_text.heads) == (config.image.heads, config.own_text.heads)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [64.0, "64", (64,), (64, 64.0)])
def test_a_size_is_whole_numbers(openai_weights: dict[str, Tensor], tmp_path: Path, wrong: Any) -> None:
    torch.save(openai_weights, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "it is a whole number, or \\(height, width\\)", activation="gelu", image_px=wrong)


def test_a_preset_states_the_architecture(openai_weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(openai_weights, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "tensors are missing: .*", preset="small")
    assert_refused(tmp_path / "w.pt", r"did you mean 'vit-b-32'", preset="vit-b32")
    assert_refused(tmp_path / "w.pt", "does not support its convolutional stem", preset="photos-small")
    assert_refused(
        tmp_path / "w.pt", "contradicts vit-b-32, which has gelu", preset="vit-b-32", activation="quick_gelu"
    )
