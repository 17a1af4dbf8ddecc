"""Print the result of `diptych export --to onnx`."""

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.output import print_facts, print_line, print_table
from diptych.core.formatting import size_text
from diptych.core.program import command

if TYPE_CHECKING:
    from diptych.export.comparison import TowerComparison
    from diptych.export.report import OnnxReport


def print_onnx_report(report: "OnnxReport", out: Path) -> None:
    """Print the files with their sizes, the differences from the model, the speed, and how to use the folder.

    Args:
        report: the result.
        out: the folder as the user named it.
    """
    title = f"{out}: {report.precision}, opset {report.opset}"
    print_table(title, ["file", "size"], [(name, size_text(num_bytes)) for name, num_bytes in report.files.items()])
    print_facts(
        "Read back and compared with the model",
        {"pictures": _compared(report.images), "texts": _compared(report.texts)},
    )
    old, new = report.torch, report.onnxruntime
    print_table(
        "Milliseconds on this machine",
        ["", "PyTorch", "ONNX Runtime"],
        [
            ("a picture", f"{old.image_ms:.1f}", f"{new.image_ms:.1f}"),
            ("a picture, in a batch of 32", f"{old.batch_image_ms:.1f}", f"{new.batch_image_ms:.1f}"),
            ("a text", f"{old.text_ms:.1f}", f"{new.text_ms:.1f}"),
        ],
    )
    print_line()
    if not report.has_tokenizer:
        print_line(
            "No tokenizer.json: Hugging Face's format cannot express this tokenizer; README.md describes what to use."
        )
    print_line(f"Use it:          {command('similarity', out, 'photo.jpg', 'a dog', 'a cat')}")
    print_line(f"In Python:       diptych.load({str(out)!r}).rank_images('a dog', 'photos/')")
    print_line(f"Without Diptych: python {out / 'example.py'} photo.jpg 'a dog' 'a cat'")
    if report.has_tokenizer:
        print_line(f"In JavaScript:   node {out / 'example.mjs'} photo.jpg 'a dog' 'a cat'")


def _compared(tower: "TowerComparison") -> str:
    return f"{tower.num}, largest difference {tower.max_difference:.1e}, smallest cosine {tower.min_cosine:.4f}"
