"""Checks that a resumed run has the settings and the data of its checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from diptych.core.address import redacted
from diptych.core.errors import RunError
from diptych.core.fingerprint import DataFingerprint
from diptych.core.settings import to_plain
from diptych.training.config import flat

_MAY_DIFFER = {
    "device",
    "data.workers",
    "data.source",
    "data.max_skipped",
    "data.skip_missing",
    "data.fingerprint",
    "deterministic",
    "gradient_checkpointing",
    "parallel",
    "checkpoint",
    "logs",
}
"""Settings and sections that do not change the trained model: devices, speed, and the locations of files."""
_ADDED: dict[str, Any] = {"data.split_rule": 1, "precision": "fp32"}
"""Settings that were added in later versions and change the trained model, with the values that earlier versions used."""


def check_same_run(saved: Mapping[str, Any], config: object) -> None:
    """Check that a resumed run has the settings of its checkpoint, except those that do not change the trained model.

    Args:
        saved: settings of the checkpoint as plain data.
        config: settings of the resumed run, or the same as plain data.

    Raises:
        RunError: a setting differs; the message contains its name and both values.

    >>> check_same_run({"seed": 0, "device": "cpu"}, {"seed": 0, "device": "cuda"})
    >>> check_same_run({"seed": 0}, {"seed": 1})
    Traceback (most recent call last):
    diptych.core.errors.RunError: its checkpoint was written with seed 0, and this run has 1; go on with the folder's own ...
    """
    differing = differing_settings(saved, config)
    if differing:
        key, was, now = differing[0]
        more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
        raise RunError(
            f"its checkpoint was written with {key} {was}, and this run has {now}{more}; go on with the folder's own "
            "config.yaml, or start a new run in another folder"
        )


def check_same_data(
    saved: Mapping[str, Any] | None,
    now: Mapping[str, DataFingerprint],
    *,
    accept: bool,
    on_message: Callable[[str], None],
) -> None:
    """Check that the data has not changed since the checkpoint was written.

    Args:
        saved: fingerprints of the checkpoint as plain data; None if it has none, as in earlier versions.
        now: current fingerprint of each split.
        accept: accept changed data, with a message.
        on_message: called with the message.

    Raises:
        RunError: the data has changed and `accept` is False; the message names the columns that differ.
    """
    if saved is None:
        on_message(
            "The checkpoint contains no fingerprint of its data, so changes of the data since then cannot be detected."
        )
        return
    changes = []
    for split, fingerprint in now.items():
        try:
            changed = fingerprint.changes_since(DataFingerprint.from_plain(saved[split]))
        except (KeyError, TypeError, AttributeError):
            changed = "its fingerprint cannot be read"
        if changed is not None:
            changes.append(f"{split} data: {changed}")
    if not changes:
        return
    if not accept:
        raise RunError(
            f"its data has changed since its checkpoint was written ({'. '.join(changes)}); restore the data, or continue "
            "with the changed data: --accept-changed-data"
        )
    on_message(
        f"The data has changed since the checkpoint was written ({'. '.join(changes)}); the run continues with the new data."
    )


def differing_settings(saved: Mapping[str, Any], config: object) -> list[tuple[str, str, str]]:
    """The settings that differ and change the trained model. Secrets in addresses are not compared.

    Args:
        saved: settings of the checkpoint as plain data.
        config: settings of the resumed run, or the same as plain data.

    Returns:
        (dotted path, saved value, current value) of each.

    >>> differing_settings({"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}})
    [('optimizer.lr', '0.1', '0.2')]
    """
    before, now = dict(flat(saved)), dict(flat(to_plain(config)))
    before = {key: value for key, value in _ADDED.items() if key in now} | before
    return [
        (key, _format(before, key), _format(now, key))
        for key in dict.fromkeys([*now, *before])
        if not {key, key.partition(".")[0]} & _MAY_DIFFER and _format(before, key) != _format(now, key)
    ]


def _format(settings: Mapping[str, Any], key: str) -> str:
    return redacted(repr(settings[key])) if key in settings else "(no such setting)"
