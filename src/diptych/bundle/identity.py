"""Model identities: hashes that are equal for models that return the same embeddings."""

import tempfile
from dataclasses import fields, is_dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from diptych.bundle.checksums import canonical_json
from diptych.bundle.serialize import weights_checksum
from diptych.core.files import sha256_of
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.tokenizers.protocol import Tokenizer

_SAMPLED = 128
_WITHOUT_EFFECT = {"dropout", "patch_dropout", "mlp_ratio", "init_temperature", "init_logit_bias", "special_names"}
"""Settings that only training uses, or that follow from the names and shapes of the weights. `special_names` affects only
texts that contain the name of a special token. It is left out so that models that were indexed before it existed keep their
identity."""


def model_identity(config: CLIPConfig, *, weights_sha256: str, tokenizer_sha256: str) -> str:
    """Return a hash of everything that determines a model's embeddings: architecture, image transform, weights, tokenizer.

    The hash has 32 hexadecimal digits. A model has the same identity in a bundle, in another library's folder and in memory;
    metrics, card and origin are not included.

    Args:
        config: the config of the model.
        weights_sha256: `weights_checksum` of the weights, equal to the SHA-256 of a bundle's `model.safetensors`.
        tokenizer_sha256: the SHA-256 of the file that the tokenizer's `save` writes.
    """
    content = {"model": _essence(config), "weights": weights_sha256, "tokenizer": tokenizer_sha256}
    return sha256(canonical_json(content)).hexdigest()[:32]


def computed_identity(model: CLIP, tokenizer: Tokenizer) -> str:
    """Return the `model_identity` of a model in memory; reads all of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        tokenizer_sha256 = sha256_of(path)
    return model_identity(
        model.config, weights_sha256=weights_checksum(model.state_dict()), tokenizer_sha256=tokenizer_sha256
    )


def sampled_identity(model: CLIP) -> str:
    """Return the identity that was used before bundles had checksums: a hash of the config and 128 numbers per tensor.

    Old indexes contain it, so it remains valid as an alias. It does not cover the tokenizer or most of the weights.
    """
    digest = blake2b(
        repr((model.config.embed_dim, model.config.image, model.config.text, model.config.pixels)).encode(),
        digest_size=6,
    )
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // _SAMPLED)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _essence(value: Any) -> Any:
    """Return the settings that differ from their defaults, so that a new setting does not change existing identities.

    Settings that were added after the first release have `repr=False`, so that they change neither this nor `sampled_identity`.
    """
    if not is_dataclass(value):
        return value
    found = {
        field: getattr(value, field.name)
        for field in fields(value)
        if field.name not in _WITHOUT_EFFECT and field.metadata.get("has_effect", True)
    }
    essence = {
        field: _essence(content)
        for field, content in found.items()
        if field.name == "kind" or (is_dataclass(content) and field.repr) or content != field.default
    }
    return {field.name: content for field, content in essence.items() if content != {} or field.repr}
