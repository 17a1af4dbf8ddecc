"""Whether two models are the same."""

from hashlib import blake2b

from diptych.models.clip import CLIP

_SAMPLED = 128


def model_identity(model: CLIP) -> str:
    """Twelve hex digits of the config, and of each tensor its shape and some numbers spread evenly over it.

    Models that were trained apart have different ones, wherever their files lie. It reads little of a large model, so takes
    milliseconds, and is no guard against anyone who wants two to be the same.
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
