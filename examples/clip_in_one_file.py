"""CLIP in one file, as in the paper: drawn shapes, two towers, the loss, the training loop and zero-shot classification.

    python examples/clip_in_one_file.py [STEPS]

For students who read Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; sections and
figures in comments are those of the paper. The file needs PyTorch alone and imports nothing from Diptych, which does the same
for real data. A run takes some seconds on a laptop. Shapes: B batch, H heads, T tokens of a sequence, W width, E embedding.
"""

import math
import sys
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- Data: pictures of 32 x 32 pixels with one colored shape, and captions that name its size, color and form

IMAGE_PX, PATCH_PX = 32, 8
SIZES = {"small": 7.0, "large": 13.0}  # Radius in pixels.
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "gray": (120, 120, 120),
}
FORMS = ("circle", "square", "triangle", "cross")
SCENES = list(product(SIZES, COLORS, FORMS))
UNSEEN = SCENES[::9]
"""Combinations that training never shows; their words occur in other captions."""


def draw(scene: tuple[str, str, str], generator: torch.Generator) -> Tensor:
    """Pixels within [0, 1] of a scene at a random place, of shape (3, 32, 32)."""
    size, color, form = scene
    radius = SIZES[size]
    center = radius + torch.rand(2, generator=generator) * (IMAGE_PX - 2 * radius)
    y, x = torch.meshgrid(torch.arange(IMAGE_PX) + 0.5, torch.arange(IMAGE_PX) + 0.5, indexing="ij")
    dy, dx = y - center[0], x - center[1]
    is_inside = {
        "circle": dx**2 + dy**2 < radius**2,
        "square": (dx.abs() < 0.85 * radius) & (dy.abs() < 0.85 * radius),
        "triangle": (dy < 0.8 * radius) & (dx.abs() < 0.6 * (dy + radius)),
        "cross": ((dx.abs() < 0.35 * radius) | (dy.abs() < 0.35 * radius))
        & (torch.maximum(dx.abs(), dy.abs()) < radius),
    }[form]
    background = 0.1 * torch.rand(1, generator=generator)
    picture = torch.where(is_inside, torch.tensor(COLORS[color])[:, None, None] / 255, background)
    return picture + 0.02 * torch.randn(picture.shape, generator=generator)


def caption(scene: tuple[str, str, str]) -> str:
    """A caption such as "a large red circle"."""
    return "a " + " ".join(scene)


# --- Tokenizer: one id per word. The paper uses byte pair encoding (sec. 2.4); both put a start and an end mark around a text.

WORDS = ["<end>", "<start>", "a", *SIZES, *COLORS, *FORMS]
START, END = WORDS.index("<start>"), WORDS.index("<end>")
CONTEXT = 8


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids of shape (B, CONTEXT), padded with the end mark, and the number of tokens of each text, marks included."""
    rows = [[START, *(WORDS.index(word) for word in text.split()), END] for text in texts]
    ids = torch.tensor([row + [END] * (CONTEXT - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


# --- The transformer that both towers share (Vaswani et al. 2017, with the norms in front of each layer: Radford et al. 2019)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, *, is_causal: bool) -> Tensor:
        """(B, T, W) to (B, T, W). With `is_causal`, a token attends to itself and to those before it."""
        q, k, v = (
            side(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for side in (self.query, self.key, self.value)
        )
        weights = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        if is_causal:
            future = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(diagonal=1)
            weights = weights.masked_fill(future, -math.inf)
        mixed = weights.softmax(dim=-1) @ v  # (B, H, T, W / H)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, *, is_causal: bool) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        x = x + self.attention(self.norm_1(x), is_causal=is_causal)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


# --- The towers (sec. 2.4)


class ImageTower(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): patches as tokens, and a class token that becomes the embedding."""

    def __init__(self, *, width: int, layers: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        num_patches = (IMAGE_PX // PATCH_PX) ** 2
        self.patch_emb = nn.Linear(3 * PATCH_PX**2, width, bias=False)
        self.class_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position_emb = nn.Parameter(torch.randn(1 + num_patches, width) * width**-0.5)
        self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, IMAGE_PX, IMAGE_PX) to (B, E)."""
        patches = pixels.unfold(2, PATCH_PX, PATCH_PX).unfold(
            3, PATCH_PX, PATCH_PX
        )  # (B, 3, rows, columns, PATCH_PX, PATCH_PX)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, rows * columns, 3 * PATCH_PX ** 2)
        x = torch.cat([self.class_emb.expand(len(pixels), 1, -1), self.patch_emb(patches)], dim=1)  # (B, T, W)
        x = self.norm_pre(x + self.position_emb)
        for block in self.blocks:
            x = block(x, is_causal=False)
        out: Tensor = self.projection(self.norm_post(x[:, 0]))
        return out


class TextTower(nn.Module):
    """A causal transformer; its output at the end mark, which has seen the whole text, becomes the embedding."""

    def __init__(self, *, width: int, layers: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(len(WORDS), width)
        self.position_emb = nn.Parameter(torch.randn(CONTEXT, width) * 0.01)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_post = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Ids of shape (B, T) and lengths of shape (B,) to (B, E)."""
        x = self.token_emb(ids) + self.position_emb[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)
        ends = x[torch.arange(len(ids)), lengths - 1]  # (B, W)
        out: Tensor = self.projection(self.norm_post(ends))
        return out


class CLIP(nn.Module):
    """Two towers that embed into one space, and a learned temperature (fig. 3)."""

    def __init__(self, *, width: int = 64, layers: int = 2, heads: int = 4, embed_dim: int = 64) -> None:
        super().__init__()
        self.image_tower = ImageTower(width=width, layers=layers, heads=heads, embed_dim=embed_dim)
        self.text_tower = TextTower(width=width, layers=layers, heads=heads, embed_dim=embed_dim)
        self.log_logit_scale = nn.Parameter(
            torch.tensor(math.log(1 / 0.07))
        )  # The temperature starts at 0.07 (sec. 2.5).

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors of shape (B, E)."""
        return functional.normalize(self.image_tower(2 * pixels - 1), dim=1)

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors of shape (B, E)."""
        return functional.normalize(self.text_tower(ids, lengths), dim=1)

    def loss(self, pixels: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """The symmetric cross-entropy of fig. 3: each picture classifies the texts of the batch, and vice versa."""
        cosines = self.encode_image(pixels) @ self.encode_text(ids, lengths).T  # (B, B)
        logits = cosines * self.log_logit_scale.exp()
        partners = torch.arange(len(logits))
        return (functional.cross_entropy(logits, partners) + functional.cross_entropy(logits.T, partners)) / 2


# --- Training (sec. 2.5): AdamW, warm-up and cosine decay


def draw_batch(generator: torch.Generator, size: int = 28) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and tokens of scenes that all differ: two pairs with one caption would count as negatives of each other."""
    known = [scene for scene in SCENES if scene not in UNSEEN]
    scenes = [known[i] for i in torch.randperm(len(known), generator=generator)[:size].tolist()]
    pixels = torch.stack([draw(scene, generator) for scene in scenes])
    return pixels, *tokenize([caption(scene) for scene in scenes])


def train(model: CLIP, *, steps: int, lr: float = 1e-3, seed: int = 0) -> None:
    """Train in place. Weight decay applies to matrices, and not to gains, biases and the temperature."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        warmup = min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = model.loss(*draw_batch(generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.log_logit_scale.clamp_(0, math.log(100))  # "to prevent training instability" (sec. 2.5)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}  logit scale {model.log_logit_scale.exp().item():.1f}")


# --- Zero-shot classification (sec. 3.1.2): the class whose text is nearest to the picture


@torch.no_grad()
def zero_shot(model: CLIP, scenes: list[tuple[str, str, str]], *, num: int, seed: int = 1) -> float:
    """Share of pictures, `num` per scene, whose caption is nearest among the captions of all scenes; chance level is 1 / 64."""
    generator = torch.Generator().manual_seed(seed)
    classes = model.encode_text(*tokenize([caption(scene) for scene in SCENES]))  # (64, E)
    hits = 0
    for scene in scenes:
        pictures = torch.stack([draw(scene, generator) for _ in range(num)])
        nearest = (model.encode_image(pictures) @ classes.T).argmax(dim=1)
        hits += int((nearest == SCENES.index(scene)).sum())
    return hits / (num * len(scenes))


def main() -> None:
    """Train, then classify pictures of scenes that were and were not in the training data."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    torch.manual_seed(0)
    model = CLIP()
    num = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num:,} parameters; chance level of the loss is ln(28) = {math.log(28):.3f}")
    train(model, steps=steps)
    known = [scene for scene in SCENES if scene not in UNSEEN]
    print(
        f"zero-shot among {len(SCENES)} captions: {zero_shot(model, known, num=8):.0%} of pictures of known combinations,"
    )
    print(
        f"{zero_shot(model, UNSEEN, num=8):.0%} of pictures of combinations that training never showed (chance level 2%)"
    )


if __name__ == "__main__":
    main()
