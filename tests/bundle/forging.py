"""Change the config of a bundle, as a forger would."""

import json
from pathlib import Path
from typing import Any

from diptych.bundle.checksums import seal
from diptych.core.files import sha256_of


def config_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "config.json").read_text("utf-8"))
    return content


def reseal(bundle: Path, **changes: Any) -> None:
    """Make the checksums fit files that a test changed, as whoever forges a bundle would."""
    files = {name: sha256_of(bundle / name) for name in ("model.safetensors", "tokenizer.json")}
    (bundle / "config.json").write_text(json.dumps(seal({**config_of(bundle), **changes, "files": files})))
