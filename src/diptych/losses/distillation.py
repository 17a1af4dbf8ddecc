"""A student learns a teacher's view of the batch, with and without the matrices of logits.

Shapes: N rows of one rank, which are the batch where there is one rank; M rows of all ranks; E embedding,
D teacher's embedding.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from diptych.core.distributed import ALONE, Ranks, all_ranks
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
    """Mean of both directions' cross-entropies between the teacher's softmax over the batch and the student's.

    With logits S of the student and T of the teacher, each `logit_scale * image_emb @ text_emb.T`:
    -(sum(softmax(T) * log_softmax(S)) + sum(softmax(T.T) * log_softmax(S.T))) / 2N. It is the `dist_loss` of open_clip's
    `DistillClipLoss`, and up to the teacher's entropy, which no gradient sees, the contrastive relational distillation of
    CLIP-KD (Yang et al. 2024). All embeddings are of unit length; the teacher's may be of another width, and gets no gradient.

    >>> emb = torch.eye(4)
    >>> bool(distillation_loss(emb, emb, torch.tensor(100.0), emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    logits = logit_scale * image_emb @ text_emb.T
    taught = (teacher_logit_scale * teacher_image_emb @ teacher_text_emb.T).detach()
    to_text = cross_entropy(logits, taught.softmax(dim=1))
    return (to_text + cross_entropy(logits.T, taught.T.softmax(dim=1))) / 2


def tiled_distillation_loss(  # noqa: PLR0917  (three of the student, three of the teacher)
    image_emb: Float[Tensor, "N E"],
    text_emb: Float[Tensor, "N E"],
    logit_scale: Float[Tensor, ""],
    teacher_image_emb: Float[Tensor, "N D"],
    teacher_text_emb: Float[Tensor, "N D"],
    teacher_logit_scale: Float[Tensor, ""],
    *,
    across_ranks: bool = False,
) -> Float[Tensor, ""]:
    """What `distillation_loss` gives, and the same gradients, without the (N, N) matrices of logits.

    With `across_ranks` the batch is the joint one of all ranks of the default process group, each of which gives as many
    rows. Each gets the loss of the joint batch and the gradients of that loss with respect to its own embeddings; the logit
    scale gets the rank's own part, so that the sum over ranks of any parameter's gradient is the gradient of the joint loss
    (DistributedDataParallel takes the mean: multiply by the number of ranks). Each rank must run both passes.

    >>> emb = torch.eye(4)
    >>> bool(tiled_distillation_loss(emb, emb, torch.tensor(100.0), emb, emb, torch.tensor(100.0)) < 1e-6)
    True
    """
    teacher = teacher_image_emb.detach(), teacher_text_emb.detach(), teacher_logit_scale.detach()
    loss: Float[Tensor, ""] = _TiledDistillationLoss.apply(  # type: ignore[no-untyped-call]  # PyTorch's own is not typed.
        image_emb, text_emb, logit_scale, *teacher, all_ranks() if across_ranks else ALONE
    )
    return loss


class _TiledDistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (as PyTorch calls it)
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
        given = image_emb, ranks.gather_rows(text_emb), logit_scale
        taught = teacher_image_emb, ranks.gather_rows(teacher_text_emb), teacher_logit_scale
        with torch.autocast(image_emb.device.type, enabled=False):
            singles, teachers = [tensor.float() for tensor in given], [tensor.float() for tensor in taught]
            student, teacher = Softmaxes.of(*singles, ranks=ranks), Softmaxes.of(*teachers, ranks=ranks)
            # -sum(p log q) = log-sum-exp of the student's logits - sum(p logits), for rows and for columns.
            total = student.rows.logs().sum() + student.columns.part(here).logs().sum()
            for tile, target in zip(tiles(*singles), tiles(*teachers), strict=True):
                total -= tile.logits.mul_(teacher.on(target)).sum()
            loss = (ranks.sum(total) / (2 * len(singles[1]))).float()
        ctx.save_for_backward(*given, *taught, *student.to_save(), *teacher.to_save())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given, taught = saved[:3], saved[3:6]
        student, teacher = Softmaxes.from_saved(saved[6:10], saved[10]), Softmaxes.from_saved(saved[11:15], saved[15])
        with torch.autocast(given[0].device.type, enabled=False):
            image, text, scale = (tensor.float() for tensor in given)
            to_text, to_image = torch.zeros_like(image), torch.zeros_like(text)
            for tile, target in zip(tiles(image, text, scale), tiles(*(t.float() for t in taught)), strict=True):
                residual = student.on(tile).sub_(teacher.on(target))
                to_text[tile.rows].addmm_(residual, text[tile.columns])
                to_image[tile.columns].addmm_(residual.T, image[tile.rows])
            factor = scale * grad / (2 * len(text))
            image_grad, text_grad = to_text * factor, ctx.ranks.scatter_sum(to_image) * factor
            scale_grad = (image * image_grad).sum() / scale
        grads = (own.to(emb.dtype) for own, emb in zip((image_grad, text_grad, scale_grad), given, strict=True))
        return *grads, None, None, None, None
