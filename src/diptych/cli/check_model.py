"""`diptych check-model`: compare a model with the library that wrote it, and show its text preparation and speed."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.output import Json, errors, print_facts, print_json, print_line, print_table

if TYPE_CHECKING:
    from diptych.export.model_check import ModelCheck, Parity


def check_model(
    bundle: Annotated[
        str, Parameter(help="Bundle folder, ONNX export, short name, or any model that `diptych import` reads.")
    ],
    /,
    *,
    against: Annotated[
        str | None,
        Parameter(
            help="Other model to compare with: a Hugging Face or open_clip folder, a hub id, a short name or a bundle. "
            "Default: the files that this model was read from."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare a model with transformers or open_clip, and show its text preparation and speed.

    The exit code is 1 if the embeddings differ.
    """
    from diptych.bundle.known_models import PREFIX, resolve_name
    from diptych.export.model_check import check_model as check

    is_download = any(resolve_name(name).startswith(PREFIX) for name in (bundle, against or ""))  # It has its own bar.
    with nullcontext() if is_download else errors().status(f"Checking {bundle} ..."):
        result = check(bundle, against=against)
    has_failed = result.parity is not None and not result.parity.passes
    if as_json:
        parity = None if result.parity is None else {**asdict(result.parity), "passes": result.parity.passes}
        print_json({**asdict(result), "parity": parity})
    else:
        _print(result)
    return 1 if has_failed else 0


def _print(result: "ModelCheck") -> None:
    print_facts(result.name, result.facts)
    _print_steps("For each text, the model", result.text)
    _print_steps("Each image is", result.image)
    print_line()
    print_line("Compared with the library that wrote it", style="bold")
    if result.parity is None:
        print_line(f"  not compared: {result.not_compared}")
    else:
        _print_parity(result.parity)
    speed = result.speed
    print_table(
        "Milliseconds on this machine (CPU, fp32)",
        ["", "one at a time", "in a batch of 32"],
        [
            ("per image", f"{speed.image_ms:.1f}", f"{speed.batch_image_ms:.1f}"),
            ("per text", f"{speed.text_ms:.1f}", f"{speed.batch_text_ms:.1f}"),
        ],
    )


def _print_steps(title: str, steps: list[str]) -> None:
    print_line()
    print_line(title, style="bold")
    for step in steps:
        print_line(f"  - {step}")


def _print_parity(parity: "Parity") -> None:
    from diptych.export.model_check import LIMIT

    print_line(f"  {parity.peer}")
    print_line(f"  files: {parity.source}")
    if not parity.uses_own_tokenizer:
        print_line("  uses Diptych's token ids, because the files have no tokenizer")
    for name, value in (
        ("image embeddings", parity.image),
        ("text embeddings", parity.text),
        ("cosine similarities", parity.score),
        ("logit scale", parity.logit_scale),
    ):
        print_line(f"  {name:<20} largest difference {value:.1e}")
    print_line(f"  {'PASS' if parity.passes else 'FAIL'}: the limit is {LIMIT:.0e}", style="bold")
