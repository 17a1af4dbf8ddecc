"""Attention on a device against float64 on the CPU. Shapes: N tokens, H heads of D numbers."""

import pytest
import torch
from torch import Tensor

from diptych.models.attention import LengthBucket, SequenceLayout, attend, attend_once

pytestmark = pytest.mark.gpu
BUCKETS = tuple(LengthBucket(3, length) for length in (1, 4, 7, 12, 30))


def _outputs(device: torch.device, dtype: torch.dtype, queries: str) -> list[Tensor]:
    """The attention output and the gradients of query, key and value, in float64 on the CPU."""
    layout = SequenceLayout.of(BUCKETS, device)
    generator = torch.Generator().manual_seed(0)
    num = layout.num_sequences if queries == "one per sequence" else layout.num_tokens
    query, key, value = (
        # Rounded to bf16 first, so that both sides start from the same numbers.
        torch.randn(rows, 8, 64, generator=generator).bfloat16().to(device, dtype).requires_grad_()
        for rows in (num, layout.num_tokens, layout.num_tokens)
    )
    out = (
        attend_once(query, key, value, layout)
        if queries == "one per sequence"
        else attend(query, key, value, layout, is_causal=queries == "causal")
    )
    direction = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    return [
        side.double().cpu()
        for side in (out.detach(), *torch.autograd.grad((out * direction).sum(), (query, key, value)))
    ]


@pytest.mark.parametrize("queries", ["causal", "all", "one per sequence"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_outputs_and_gradients_are_exact(
    device: torch.device, queries: str, dtype: torch.dtype, tolerance: float
) -> None:
    """The tolerance is relative to the largest value: the rounding of the dtype, and of TF32."""
    exact = _outputs(torch.device("cpu"), torch.float64, queries)
    for ours, theirs in zip(_outputs(device, dtype, queries), exact, strict=True):
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.cuda("`varlen_attn` needs a CUDA device; a CPU makes one call for each length")
def test_no_kernel_is_added_by_a_new_mixture_of_lengths() -> None:
    counts = []
    for lengths in ((2, 30), tuple(range(1, 31))):
        layout = SequenceLayout.of(tuple(LengthBucket(2, length) for length in lengths), torch.device("cuda"))
        x = torch.randn(layout.num_tokens, 8, 64, device="cuda", dtype=torch.bfloat16)
        attend(x, x, x, layout, is_causal=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            attend(x, x, x, layout, is_causal=True)
            torch.cuda.synchronize()
        counts.append(len([event for event in profile.events() if "flash" in event.name.lower()]))
    assert counts[0] == counts[1] > 0
