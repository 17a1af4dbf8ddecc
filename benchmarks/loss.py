"""Compare time and memory of the tiled contrastive loss, forward and backward, with open_clip's `ClipLoss`.

    python benchmarks/loss.py [--out FILE]

Embeddings have 512 dimensions and are float32; all cores are used. Each measurement runs in its own process, and the two sides
alternate. Extra memory is the peak of the process minus its memory after the embeddings were created.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median

from harness import arguments, machine, table, write

ROUNDS = 3
DIM = 512
SIZES = (8192, 16384, 32768, 65536)
PEER_SIZES = (8192, 16384)

ONE = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
side, num = sys.argv[2], int(sys.argv[3])
if side == "open_clip":
    from tests import peers
    loss_of = peers.open_clip.ClipLoss()
else:
    from diptych.losses.tiled import tiled_clip_loss as loss_of
def status(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))
generator = torch.Generator().manual_seed(0)
image, text = torch.randn(2, num, 512, generator=generator).unbind()
text = torch.nn.functional.normalize(0.1 * image + text, dim=1).requires_grad_()
image = torch.nn.functional.normalize(image, dim=1).requires_grad_()
scale = torch.tensor(14.3, requires_grad=True)
small = [tensor.detach()[:256].clone().requires_grad_() for tensor in (image, text)]
loss_of(*small, scale).backward()  # Warm-up: one-time setup is not measured.
held = status("VmRSS")
began = time.perf_counter()
loss = loss_of(image, text, scale)
middle = time.perf_counter()
loss.backward()
print(middle - began, time.perf_counter() - middle, status("VmHWM") - held, loss.item())
"""


def main() -> None:
    """Measure, print, and write the table."""
    given = arguments(__doc__)
    found = [row for num in SIZES for row in rows(num)]
    write(
        given.out,
        "# The contrastive loss",
        f"`python benchmarks/loss.py`, {machine('open_clip_torch')}",
        f"Embeddings of {DIM} numbers, float32, logit scale 14.3; medians of {ROUNDS} processes that take turns, and one "
        "process where there is no peer: the next size would take it about 26 GB.",
        table(["pairs", "side", "forward, s", "backward, s", "extra memory, MB", "speed", "memory"], found),
    )


def rows(num: int) -> list[list[str]]:
    """Return the rows of one batch size."""
    sides = ["open_clip", "Diptych"] if num in PEER_SIZES else ["Diptych"]
    runs: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(ROUNDS if len(sides) == 2 else 1):
        for side in sides:
            runs[side].append(measure(side, num))
    losses = [run[0][3] for run in runs.values()]
    if max(losses) - min(losses) > 1e-5 * losses[0]:
        sys.exit(f"the two losses differ at {num} pairs: {losses}")
    out = []
    for side in sides:
        forward, backward, memory = (median(run[i] for run in runs[side]) for i in range(3))
        ratios = ["", ""]
        if side == "Diptych" and len(sides) == 2:
            pairs = list(zip(runs["open_clip"], runs["Diptych"], strict=True))
            speed = median((theirs[0] + theirs[1]) / (own[0] + own[1]) for theirs, own in pairs)
            share = median(own[2] / theirs[2] for theirs, own in pairs)
            ratios = [f"**{speed:.2f} x**", f"1/{1 / share:.0f}"]
        out.append([f"{num:,}", side, f"{forward:.2f}", f"{backward:.2f}", f"{memory:,.0f}", *ratios])
        print(*out[-1], sep=", ", file=sys.stderr)
    return out


def measure(side: str, num: int) -> list[float]:
    """Return the seconds of forward and backward, the extra memory in MB, and the loss."""
    command = [sys.executable, "-W", "ignore", "-c", ONE, str(Path(__file__).parents[1]), side, str(num)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(found.stderr)
    return [float(number) for number in found.stdout.split()]


if __name__ == "__main__":
    main()
