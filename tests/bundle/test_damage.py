"""Damaged and forged bundles: every change of a number is found, and a bundle's identity follows from its contents."""

import json
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.bundle import checksums
from diptych.bundle import folder as folder_module
from diptych.bundle.folder import FILES, Bundle, add_evaluation, add_metrics, load_bundle, require_bundle, save_bundle
from diptych.bundle.identity import computed_identity, model_identity, sampled_identity
from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.bundle.serialize import weights_checksum, write_weights
from diptych.core import cache
from diptych.core.errors import BundleError, ConfigError, DiptychWarning
from diptych.core.files import sha256_of
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from tests.bundle.makers import config_of, reseal
from tests.makers import flip_bit

SMALL = CLIPConfig(
    embed_dim=8,
    image=ViTConfig(image_px=16, patch_px=8, width=8, layers=1, heads=1),
    text=TextConfig(tokenizer="hashing", vocab_size=16, context_length=8, width=8, layers=1, heads=1),
)


@pytest.fixture
def old_bundle(bundle: Path) -> Path:
    """The copy as Diptych wrote it before bundles had checksums."""
    content = {**config_of(bundle), "format_version": 2}
    del content["sha256"], content["files"]
    (bundle / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return bundle


@pytest.fixture
def _remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files and fresh ones are remembered, too."""
    monkeypatch.setattr(checksums, "_REMEMBERED_BYTES", 0)
    monkeypatch.setattr(cache, "SETTLED_S", -1.0)


def _small(**text: Any) -> Bundle:
    torch.manual_seed(0)
    config = replace(SMALL, text=replace(SMALL.text, **text))
    return Bundle(model=CLIP(config).eval(), tokenizer=HashingTokenizer(vocab_size=16, context_length=8))


def _loaded_or_refused(path: Path) -> tuple[Bundle | None, str]:
    try:
        return load_bundle(path), ""
    except BundleError as error:
        return None, str(error)


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_found_or_changes_no_number(bundle: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = bundle / (*FILES, "README.md")[seed % 4]
    before = load_bundle(bundle)
    flip_bit(path, rng.randrange(8 * path.stat().st_size))
    after, message = _loaded_or_refused(bundle)
    if after is None:
        assert str(bundle) in message
        assert "\n" not in message
        return
    assert path.name in {"README.md", "config.json"}
    assert (after.config, after.metrics, after.origin) == (before.config, before.metrics, before.origin)
    assert after.identity == before.identity


def test_every_bit_of_a_number_in_the_config_is_found(tmp_path: Path) -> None:
    save_bundle(replace(_small(), metrics={"top1": 0.25}), tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    text = path.read_bytes()
    first = text.index(b'"top1": 0.25') + len(b'"top1": ')
    version = text.index(b'"format_version": 3') + len(b'"format_version": ')
    for byte in (*range(first, first + 4), version):
        for bit in range(8):
            path.write_bytes(text)
            flip_bit(path, 8 * byte + bit)
            with pytest.raises(BundleError, match=r"config\.json"):
                load_bundle(tmp_path / "b")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_the_message_names_the_damaged_file(bundle: Path, name: str) -> None:
    flip_bit(bundle / name, 8 * (bundle / name).stat().st_size - 20)
    with pytest.raises(BundleError, match=rf"{name}: is damaged: its SHA-256 is .*copy or download the bundle again"):
        load_bundle(bundle)


def test_metrics_are_sealed_anew_but_damage_is_not(bundle: Path) -> None:
    add_metrics(bundle, {"zero_shot": {"top1": 0.5, "nan": float("nan")}})
    add_evaluation(bundle, "Retrieval", summary="R@1 5 %", protocol={"images": 3})
    assert load_bundle(bundle).metrics["evaluations"]["Retrieval"]["summary"] == "R@1 5 %"
    text = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(text.replace('"top1": 0.5', '"top1": 0.7'))
    with pytest.raises(BundleError, match="does not match its own checksum"):
        add_metrics(bundle, {"more": 1})


@pytest.mark.usefixtures("_remembering")
def test_a_file_is_read_once_per_state(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checksums, "sha256_of", counted)
    for _ in range(2):
        load_bundle(bundle)
    assert sorted(read) == ["model.safetensors", "tokenizer.json"]
    open_bundle(bundle, verify="full")
    assert len(read) == 4
    status = (bundle / "tokenizer.json").stat()
    flip_bit(bundle / "tokenizer.json", 99)
    os.utime(bundle / "tokenizer.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleError, match=r"tokenizer\.json: is damaged"):
        load_bundle(bundle)  # A program can set back the time of the content, but not that of the metadata.


@pytest.mark.usefixtures("_remembering")
def test_a_full_check_trusts_no_note(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bundle(bundle)
    monkeypatch.setattr(checksums, "file_stamp", lambda path: "the same")
    load_bundle(bundle)
    load_bundle(bundle)
    flip_bit(bundle / "model.safetensors", 8 * (bundle / "model.safetensors").stat().st_size - 20)
    load_bundle(bundle)  # Decay of a disk that changes no time stamp goes unnoticed here,
    with pytest.raises(BundleError, match=r"model\.safetensors: is damaged"):
        open_bundle(bundle, verify="full")  # and is found here.


@pytest.mark.usefixtures("unchecked")
def test_verify_has_two_values(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="unknown value of verify 'ful'; did you mean 'full'"):
        open_bundle(bundle, verify="ful")  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_is_no_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_REMEMBERED_BYTES", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_bundle(bundle)


def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_MAX_NOTES", 4)
    for number in range(12):
        cache.remember(f"key {number}", str(number))
    assert cache.recall("key 11") == "11"
    assert cache.recall("key 0") is None
    assert len(list((tmp_path / "diptych" / "notes").iterdir())) <= 4


def test_a_bundle_without_checksums_loads_with_one_warning(old_bundle: Path, tmp_path: Path) -> None:
    with pytest.warns(DiptychWarning, match=r"no checksums \(format 2\).*`diptych import .* --out NEW`") as caught:
        loaded = load_bundle(old_bundle)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_bundle(old_bundle)
    add_metrics(old_bundle, {"top1": 0.5})
    assert (config_of(old_bundle)["format_version"], load_bundle(old_bundle).metrics["top1"]) == (2, 0.5)
    save_bundle(open_bundle(old_bundle), tmp_path / "new")  # What `diptych import OLD --out NEW` does.
    assert load_bundle(tmp_path / "new").identity == loaded.identity


def test_half_a_step_back_to_the_old_format_is_damage(bundle: Path) -> None:
    (bundle / "config.json").write_text(json.dumps({**config_of(bundle), "format_version": 2}))
    with pytest.raises(BundleError, match="does not match its own checksum"):
        load_bundle(bundle)


def test_the_identity_is_the_models_wherever_it_lies(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    identity = loaded.identity
    assert len(identity) == 32
    assert computed_identity(loaded.model, loaded.tokenizer) == identity
    assert Bundle(model=loaded.model, tokenizer=loaded.tokenizer).identity == identity
    other = replace(loaded, metrics={}, origin={"from": "elsewhere"})
    save_bundle(other, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("another card")
    add_metrics(tmp_path / "copy", {"top1": 1.0})
    assert load_bundle(tmp_path / "copy").identity == identity
    assert LoadedBundle(other).identities == (identity, sampled_identity(loaded.model))


@pytest.mark.parametrize("to", ["open-clip", "hugging-face"])
def test_the_identity_survives_other_libraries(tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TextConfig(tokenizer="clip-bpe", vocab_size=49408, width=64, layers=1, heads=1)
    image = ViTConfig(image_px=32, patch_px=16, width=64, layers=1, heads=1, patch_dropout=0.5)
    config = CLIPConfig(embed_dim=16, image=image, text=text)
    if to == "hugging-face":
        config = replace(config, pixels=replace(config.pixels, crop_rounding="down"))
    bundle = Bundle(model=CLIP(config).eval(), tokenizer=ClipBPETokenizer(context_length=77))
    export_bundle(bundle, to, tmp_path / "out")
    monkeypatch.setattr(cache, "SETTLED_S", -1.0)
    identity = bundle.identity
    assert open_bundle(tmp_path / "out").identity == identity
    monkeypatch.setattr(folder_module, "computed_identity", lambda model, tokenizer: "computed again")
    assert open_bundle(tmp_path / "out").identity == identity
    assert open_bundle(tmp_path / "out", image_px=64).identity == "computed again"
    os.utime(tmp_path / "out" / "open_clip_config.json" if to == "open-clip" else tmp_path / "out" / "config.json")
    assert open_bundle(tmp_path / "out").identity == "computed again"


def test_one_number_makes_another_identity() -> None:
    bundle = _small()
    seen = {bundle.identity, _small(pooling="mean").identity}
    with torch.no_grad():
        for tensor in bundle.model.state_dict().values():
            flat = tensor.view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
            seen.add(bundle.identity)
    tokenizer = LearnedBPETokenizer.train(["a b"], vocab_size=300, context_length=8)
    seen.add(replace(bundle, tokenizer=tokenizer).identity)
    assert len(seen) == 3 + len(bundle.model.state_dict())


def test_identities_stay_what_they_are() -> None:
    """If this fails, indexes made by released versions no longer know their model: a setting must keep its default."""
    model = _small().model
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape))
    assert model_identity(SMALL, weights_sha256="a", tokenizer_sha256="b") == "916d0514e26625110bb4d3a087eba829"
    assert model_identity(CLIPConfig(), weights_sha256="a", tokenizer_sha256="b") == "0181775c0045c11fdee248d5e4803f99"
    assert sampled_identity(model) == "b5a69f653d57"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_weights_are_written_as_the_library_writes_them(tmp_path: Path, dtype: torch.dtype) -> None:
    weights: dict[str, Tensor] = {"b": torch.arange(3).to(dtype), "a.x": torch.ones(2, 3), "count": torch.tensor(7)}
    weights["t"] = torch.arange(6.0).reshape(2, 3).T
    checksum = write_weights(weights, tmp_path / "ours")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert checksum == weights_checksum(weights) == sha256_of(tmp_path / "ours")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(tmp_path / "ours").items())


def _grow(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            model = model[parent]
        model[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("text.layers", 20_000, r"model\.text\.layers is 20000; it must be at most 256"),
        ("image.layers", 20_000, r"model\.image\.layers is 20000; it must be at most 256"),
        ("text.layers", 200, r"the config has 201 blocks, the file only \d+ tensors"),
        ("text.width", 65_536, r"model\.text\.width is 65536; it must be at most 32768"),
        ("text.width", 8192, r"does not fit its config\.json: text_tower\..* is .*, expected .*8192"),
        ("text.vocab_size", 2**40, r"model\.text\.vocab_size is 1099511627776"),
        ("text.vocab_size", 2**24, r"text_tower\.token_emb\.weight is .*, expected 16777216x16"),
        ("text.vocab_size", -1, r"model\.text\.vocab_size is -1"),
        ("text.context_length", 10**9, r"model\.text\.context_length is 1000000000"),
        ("text.mlp_ratio", 1e9, r"model\.text\.mlp_ratio is 1000000000\.0"),
        ("text.mlp_ratio", float("nan"), r"'text\.mlp_ratio' is nan: input should be a finite number"),
        ("text.mlp_ratio", 1e-9, r"model\.text\.mlp_ratio is 1e-09"),
        ("text.dropout", float("nan"), r"'text\.dropout' is nan: input should be a finite number"),
        ("text.heads", 0, r"heads 0 must be at least 1"),
        ("text.width", 10**400, "an integer of more than 40 digits"),
        ("image.image_px", 2**30, r"model\.image\.image_px is 1073741824; it must be at most 4096"),
        ("image.image_px", 4096, r"image_tower\.position_emb is .*, expected 65537x16"),
        ("embed_dim", 2**30, r"model\.embed_dim is 1073741824; it must be at most 32768"),
        ("init_temperature", float("nan"), "'init_temperature' is nan: input should be a finite number"),
        ("init_logit_bias", float("inf"), "'init_logit_bias' is inf: input should be a finite number"),
        ("pixels.std", [1, 1, float("nan")], r"'pixels\.std\.2' is nan"),
        ("pixels.mean", [1, 1, float("inf")], r"'pixels\.mean\.2' is inf"),
    ],
)
def test_a_config_that_claims_too_much_is_refused_at_once(bundle: Path, key: str, value: Any, message: str) -> None:
    model = config_of(bundle)["model"]
    _grow(key, value)(model)
    reseal(bundle, model=model)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda w: w.pop("log_logit_scale"), "log_logit_scale is missing"),
        (lambda w: w.update(log_logit_scale=torch.zeros((), dtype=torch.int32)), "log_logit_scale has dtype I32"),
        (lambda w: w.update(log_logit_scale=torch.zeros(2)), "log_logit_scale is 2, expected a single number"),
    ],
)
def test_the_first_difference_is_named(
    bundle: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    weights = load_file(bundle / "model.safetensors")
    change(weights)
    save_file(weights, bundle / "model.safetensors")
    reseal(bundle)
    with pytest.raises(BundleError, match=f"does not fit its config.json: {message}"):
        load_bundle(bundle)


@pytest.mark.parametrize("length", [2**63, 2**40, 2**20, 0])
def test_a_header_that_lies_about_its_length_is_refused(bundle: Path, length: int) -> None:
    content = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    reseal(bundle)
    with pytest.raises(BundleError, match=r"model\.safetensors: is damaged"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_a_regular_file_is_refused(bundle: Path, name: str) -> None:
    kept = bundle / f"kept-{name}"
    (bundle / name).rename(kept)
    (bundle / name).symlink_to(kept.name)
    load_bundle(bundle)  # The hub's cache is made of links to regular files.
    (bundle / name).unlink()
    os.mkfifo(bundle / name)  # Reading it would wait for a writer.
    with pytest.raises(BundleError, match=rf"{name}: is not a regular file"):
        load_bundle(bundle)
    (bundle / name).unlink()
    (bundle / name).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=rf"{name}: is not a regular file"):
        load_bundle(bundle)


def test_a_lower_precision_keeps_the_identities(bundle: Path) -> None:
    full = load(bundle, device="cpu")
    half = LoadedBundle(load_bundle(bundle), identities=full.identities)
    require_bundle(half.bundle).model.convert(torch.bfloat16)
    assert half.identities == full.identities
    assert np.allclose(half.encode_texts(["a dog"]), full.encode_texts(["a dog"]), atol=0.1)
