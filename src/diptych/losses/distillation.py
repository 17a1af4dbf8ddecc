"""Distillation loss: a student learns to match the similarities that a teacher gives to the pairs of a batch.

Shapes: N rows of one rank, M rows of all ranks, E student's embedding, D teacher's embedding.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from diptych.device.distributed import ALONE, Ranks, accepts_across_ranks
from diptych.losses.softmaxes import Softmaxes
from diptych.losses.tiles import tiles


def distillation_loss(  # noqa: PLR0917  (three of the student, three of the teacher)
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    teacher_image_emb: Float[Tensor, "N D"],
    teacher_text_emb: Float[Tensor, "N D"],
    teacher_logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean of the image-to-text and text-to-image cross-entropies between the teacher's softmax and the student's.

    With the student's logits S and the teacher's logits T, each `logit_scale * image_emb @ text_emb.T`, the loss is
    -(sum(softmax(T) * log_softmax(S)) + sum(softmax(T.T) * log_softmax(S.T))) / 2N. It equals `dist_loss` in open_clip's
    `DistillClipLoss`. Up to the teacher's entropy, which is constant, it equals the contrastive relational distillation of
    CLIP-KD (Yang et al. 2024).

    All embeddings have unit length. The teacher's embedding dimension may differ. The teacher gets no gradient.

    >>> emb = torch.eye(4)
    >>> bool(distillation_loss(emb, emb, torch.tensor(100.0), emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    logits = logit_scale * image_emb @ text_emb.T
    teacher_logits = (teacher_logit_scale * teacher_image_emb @ teacher_text_emb.T).detach()
    image_to_text = cross_entropy(logits, teacher_logits.softmax(dim=1))
    return (image_to_text + cross_entropy(logits.T, teacher_logits.T.softmax(dim=1))) / 2


@accepts_across_ranks
def tiled_distillation_loss(  # noqa: PLR0917  (three of the student, three of the teacher)
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    teacher_image_emb: Float[Tensor, "N D"],
    teacher_text_emb: Float[Tensor, "N D"],
    teacher_logit_scale: Float[Tensor, ""],
    *,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """The value and gradients of `distillation_loss`, without storing the (N, N) matrices of logits.

    With several `ranks`, the batch is the joint batch of all of them (`all_ranks()`). All ranks must have the same
    number of rows, and each must run the forward and the backward pass. Each rank returns the loss of the joint batch and gets
    the gradients with respect to its own embeddings and its own share of the logit scale's gradient. Summed over the ranks,
    the gradient of any parameter is that of the joint loss. DistributedDataParallel averages gradients, so multiply the loss
    by the number of ranks.

    >>> emb = torch.eye(4)
    >>> bool(tiled_distillation_loss(emb, emb, torch.tensor(100.0), emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    teacher = teacher_image_emb.detach(), teacher_text_emb.detach(), teacher_logit_scale.detach()
    loss: Float[Tensor, ""] = _TiledDistillationLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, *teacher, ranks
    )
    return loss


class _TiledDistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (PyTorch passes them by position)
        ctx: Any,
        image_emb: Tensor,
        text_emb: Tensor,
        logit_scale: Tensor,
        teacher_image_emb: Tensor,
        teacher_text_emb: Tensor,
        teacher_logit_scale: Tensor,
        ranks: Ranks,
    ) -> Tensor:
        ctx.ranks, here = ranks, ranks.rows(len(image_emb))
        student_inputs = image_emb, ranks.gather_rows(text_emb), logit_scale
        teacher_inputs = teacher_image_emb, ranks.gather_rows(teacher_text_emb), teacher_logit_scale
        with torch.autocast(image_emb.device.type, enabled=False):
            students, teachers = [x.float() for x in student_inputs], [x.float() for x in teacher_inputs]
            student, teacher = Softmaxes.of(*students, ranks=ranks), Softmaxes.of(*teachers, ranks=ranks)
            # For rows and columns: -sum(p log q) = log-sum-exp of the student's logits - sum(p * logits).
            total = student.rows.logs().sum() + student.columns.part(here).logs().sum()
            for tile, target in zip(tiles(*students), teacher.tiles(*teachers), strict=True):
                total -= tile.logits.mul_(teacher.on(target)).sum()
            loss = (ranks.sum(total) / (2 * len(students[1]))).float()
        ctx.save_for_backward(*student_inputs, *teacher_inputs, *student.to_save(), *teacher.to_save())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        student_inputs, teacher_inputs = saved[:3], saved[3:6]
        student, teacher = Softmaxes.from_saved(saved[6:10], saved[10]), Softmaxes.from_saved(saved[11:15], saved[15])
        with torch.autocast(student_inputs[0].device.type, enabled=False):
            image, text, scale = (x.float() for x in student_inputs)
            teachers = [x.float() for x in teacher_inputs]
            image_sum, text_sum = (
                torch.zeros_like(image),
                torch.zeros_like(text),
            )  # residual @ text, its transpose @ image
            for tile, target in zip(student.tiles(image, text, scale), teacher.tiles(*teachers), strict=True):
                residual = student.on(tile).sub_(teacher.on(target))
                image_sum[tile.rows].addmm_(residual, text[tile.columns])
                text_sum[tile.columns].addmm_(residual.T, image[tile.rows])
            factor = scale * grad / (2 * len(text))
            image_grad, text_grad = image_sum * factor, ctx.ranks.scatter_sum(text_sum) * factor
            scale_grad = (image * image_grad).sum() / scale
        grads = (g.to(x.dtype) for g, x in zip((image_grad, text_grad, scale_grad), student_inputs, strict=True))
        return *grads, None, None, None, None
