"""PyTorch's AdamW with gradients of a few rows."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.models.clip import CLIP
from diptych.training.optim import adamw
from diptych.training.optim.adamw import AdamW, takes_rows
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.optim.lion import Lion
from diptych.training.step import TrainingStep
from tests.conftest import TINY_MODEL
from tests.training.test_step import batch_of

_SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2, "fused": True}


@pytest.mark.parametrize("num_rows", [2048, 4096, 5000])
def test_rows_move_as_the_whole_matrix_would(num_rows: int) -> None:
    torch.manual_seed(0)
    whole, rows = nn.Embedding(num_rows, 8), nn.Embedding(num_rows, 8, sparse=True)
    rows.load_state_dict(whole.state_dict())
    theirs, ours = torch.optim.AdamW(whole.parameters(), **_SETTINGS), AdamW(rows.parameters(), **_SETTINGS)
    for asked in (torch.randperm(num_rows)[:50], torch.tensor([num_rows - 1, 0]), torch.tensor([7])):
        weights = torch.randn(len(asked), 8)
        for embedding, optimizer in ((whole, theirs), (rows, ours)):
            optimizer.zero_grad()
            (embedding(asked) * weights).sum().backward()
            optimizer.step()
    assert torch.equal(whole.weight, rows.weight)
    state, expected = ours.state[rows.weight], theirs.state[whole.weight]
    assert {key: value.tolist() for key, value in state.items()} == {k: v.tolist() for k, v in expected.items()}


def test_what_has_rows_and_what_has_none_move_together_and_the_closures_loss_comes_back() -> None:
    torch.manual_seed(0)
    embedding, other = nn.Embedding(20, 4, sparse=True), nn.Parameter(torch.ones(4))
    optimizer = AdamW([*embedding.parameters(), other], **_SETTINGS)
    before = embedding.weight.detach().clone()

    def closure() -> float:
        loss = (embedding(torch.tensor([3, 3, 5])) * other).sum()
        loss.backward()
        return loss.item()

    expected = closure()
    optimizer.zero_grad()
    assert optimizer.step(closure) == expected
    moved = (embedding.weight - before * (1 - 0.01 * 0.2)).abs().max(dim=1).values > 1e-6
    assert moved.nonzero().flatten().tolist() == [3, 5]
    assert not torch.equal(other.detach(), torch.full((4,), 1 - 0.01 * 0.2))
    assert optimizer.step() is None


def test_rows_are_kept_of_a_large_vocabulary_that_adamw_moves() -> None:
    large, small = nn.Embedding(adamw.MANY_ROWS, 1), nn.Embedding(adamw.MANY_ROWS - 1, 1)
    for embedding in (large, small):
        assert takes_rows(embedding, [AdamW(embedding.parameters())]) is (embedding is large)
    assert not takes_rows(large, [Lion(large.parameters(), lr=1.0)])
    assert takes_rows(large, [Lion(small.parameters(), lr=1.0), AdamW(large.parameters())])


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_a_step_by_rows_is_the_step(
    micro_batch: int | None, max_grad_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(TINY_MODEL, distinct=7)
    models, results = [], []
    for many in (TINY_MODEL.text.vocab_size, TINY_MODEL.text.vocab_size + 1):
        monkeypatch.setattr(adamw, "MANY_ROWS", many)
        torch.manual_seed(1)
        model = CLIP(TINY_MODEL).train()
        step = TrainingStep(
            model,
            build_optimizers(model, OptimizerConfig()),
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        )
        assert model.text_tower.token_emb.sparse is (many == TINY_MODEL.text.vocab_size)
        results.append([step(batch, lr=1e-3, seed=seed) for seed in range(3)])
        models.append(model)
    for one, other in zip(*results, strict=True):
        assert replace(one, grad_norm=0.0, loss=0.0) == replace(other, grad_norm=0.0, loss=0.0)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-6)
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_training_loads_no_compiler(tmp_path: Path) -> None:
    """Which takes 72 MB and a second; neither a step nor a checkpoint, nor going on from one, needs it."""
    code = (
        "import sys; from diptych.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('compiler', 'torch._dynamo' in sys.modules, file=sys.stderr)"
    )
    run = tmp_path / "run"
    small = ("--batch-size", "8", "--data.source", "shapes:64", "--validation.samples", "8")
    for words in (("shapes", *small, "--steps", "2", "--out", run), ("--resume", run)):
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *map(str, words)], capture_output=True, text=True, check=True
        )
        assert done.stderr.endswith("compiler False\n"), done.stderr
