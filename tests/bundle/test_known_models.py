"""The known models and their short names."""

import re
from pathlib import Path

import pytest

from diptych.bundle.known_models import KNOWN_MODELS, known_model, missing_model, near_hub_ids, near_names, resolve_name
from diptych.bundle.licenses import allows_commercial_use
from diptych.bundle.open_bundle import open_bundle
from diptych.core.errors import BundleError
from diptych.inference.loaded import load
from diptych.models.size import model_size
from diptych.presets import PRESETS

MODELS = list(KNOWN_MODELS.values())


def test_the_list_keeps_its_rules() -> None:
    assert len(MODELS) >= 80
    assert len({model.hub_id for model in MODELS}) == len(MODELS)
    for name, model in KNOWN_MODELS.items():
        assert name == model.name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name), name
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", model.hub_id), name
        assert not re.search(r"naflex|--|\.\.", model.hub_id.lower()), name
        assert 0 < model.embed_dim <= 4096
        assert 32 <= model.image_px <= 1024
        assert 1e6 < model.parameters < 1e10
        assert model.image_gflops > 1
        assert model.imagenet_top1 is None or 20 < model.imagenet_top1 < 90, name
        assert set(model.family.extras) <= {"hub", "towers"}
        assert "hub" in model.family.extras


@pytest.mark.parametrize("name", sorted(set(PRESETS) & {name for m in MODELS for name in (m.architecture, m.name)}))
def test_a_preset_has_the_parameters_of_the_list(name: str) -> None:
    config = PRESETS[name]
    for model in MODELS:
        if name in (model.architecture, model.name):
            assert model.parameters == model_size(config).parameters, model.name
            assert (model.embed_dim, model.image_px) == (config.embed_dim, config.image.image_px)


def test_families_say_where_their_figures_are_from() -> None:
    for family in {model.family.name: model.family for model in MODELS}.values():
        assert len(family.license_source) > 10
        assert len(family.figures_source) > 10
        assert family.license is None or allows_commercial_use(family.license) is not None or "apple" in family.license
    assert {model.family.name for model in MODELS if model.allows_commercial_use is False} == {
        "DFN-5B",
        "MetaCLIP",
        "MetaCLIP 2",
        "MobileCLIP 2",
        "NLLB-CLIP",
    }


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("siglip2-b-32-256", "hf:google/siglip2-base-patch32-256"),
        ("clip-vit-l-14-336", "hf:openai/clip-vit-large-patch14-336"),
        ("hf:me/clip@v1", "hf:me/clip@v1"),
        ("runs/mine/bundle", "runs/mine/bundle"),
    ],
)
def test_short_names(name: str, address: str) -> None:
    assert resolve_name(name) == address


def test_a_local_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "siglip2-b-32-256").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_name("siglip2-b-32-256") == "siglip2-b-32-256"
    with pytest.raises(BundleError, match=r"^siglip2-b-32-256: is neither a bundle"):
        open_bundle("siglip2-b-32-256")


@pytest.mark.parametrize("opener", [open_bundle, load])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SigLIP2-SO400M-16-265", "did you mean 'siglip2-so400m-16-256'"),
        ("metaclip2-b16", "did you mean 'metaclip2-b-16'"),
        ("google/siglip2-base-patch16-224", "for a model on the hub, write hf:google/siglip2-base-patch16-224"),
        ("zzz", "^zzz: no such file or folder$"),
    ],
)
def test_an_unknown_name_suggests_near_ones(opener: type, name: str, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        opener(name)


def test_names_that_resemble_nothing_have_no_suggestion() -> None:
    assert near_names("my-model") == near_names("a/b") == near_hub_ids("me/mine") == []
    assert missing_model("/a/b/c") == "/a/b/c: no such file or folder"


def test_a_hub_id_is_known_in_any_revision() -> None:
    for address in ("hf:google/siglip2-base-patch32-256", "hf:google/siglip2-base-patch32-256@main"):
        model = known_model(address)
        assert model is not None
        assert model.name == "siglip2-b-32-256"
    assert known_model("google/siglip2-base-patch32-256") is None


def test_the_page_of_known_models_lists_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "known-models.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(MODELS)
    for row, model in zip(rows, MODELS, strict=True):
        top1 = "" if model.imagenet_top1 is None else model.imagenet_top1
        sizes = f"{model.embed_dim} | {model.image_px} px | {model.parameters:,} | {model.image_gflops:,.1f} | {top1} |"
        assert row == f"| `{model.name}` | `{model.hub_id}` | {model.architecture} | {sizes}"
        family = model.family
        stated = f"License: {family.license or 'not stated'} ({family.license_source}). Languages: {family.languages}."
        assert f"## {family.name}\n\n{stated} Zero-shot figures: {family.figures_source}.\n" in page


def test_the_name_of_a_family_and_a_naflex_name_get_an_alternative() -> None:
    assert "did you mean 'siglip2-b-32-256' or " in missing_model("siglip2")
    assert missing_model("siglip2-so400m-16-naflex").endswith("with a fixed size, such as siglip2-so400m-16-256")
