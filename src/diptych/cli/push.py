"""`diptych push`: upload a bundle to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diptych.cli.output import print_line, print_table, warn
from diptych.core.errors import ConfigError


def push(
    bundle: Annotated[str, Parameter(help="Bundle folder, or any model that `diptych import` reads.")],
    address: Annotated[str, Parameter(help="Where to upload it: hf:USER/NAME.")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="List the files without uploading them.", show_default=True)] = False,
    private: Annotated[bool, Parameter(help="Create a private repository.", show_default=True)] = False,
    no_onnx: Annotated[bool, Parameter(help="Upload the bundle without an ONNX export.", show_default=True)] = False,
) -> None:
    """Upload a bundle, its ONNX export and a model card to the Hugging Face hub."""
    from diptych.bundle.onnx_layout import is_onnx_folder
    from diptych.bundle.open_bundle import open_bundle
    from diptych.core.formatting import size_text
    from diptych.export.push import push as upload

    if is_onnx_folder(Path(bundle)):
        raise ConfigError(f"{bundle}: is an ONNX export; push the bundle, and the ONNX files are uploaded with it")
    result = upload(open_bundle(bundle, verify="full"), address, private=private, onnx=not no_onnx, dry_run=dry_run)
    rows = [[name, size_text(size)] for name, size in result.files.items()]
    print_table("Files", ["file", "size"], rows)
    if result.without_onnx is not None:
        warn(f"without ONNX files: {result.without_onnx}")
    for name in result.kept:
        print_line(f"Kept: the {name} that is already on the hub.")
    if result.removed:
        print_line(f"Removed: {len(result.removed)} files of an earlier upload.")
    if result.url is None:
        print_line(f"Nothing was uploaded. Without --dry-run, these files go to {address}.")
        return
    print_line(f"Uploaded: {result.url}")
    print_line(f'Use it:  diptych.load("{address}")')
