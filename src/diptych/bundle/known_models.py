"""The models that have a short name, with their hub ids, sizes, licenses and published figures. Needs no PyTorch.

Sources of the figures:

- hub ids: the list of pretrained weights of open_clip 3.3.0 (`open_clip/pretrained.py`), and the authors' organizations on
  the hub (openai, google, facebook, apple, laion, sentence-transformers, visheratin).
- parameters and operations: counted on the definitions of open_clip 3.3.0 with PyTorch's `FlopCounterMode`. A multiply-add
  counts as two operations. Parameters of models with an XLM-RoBERTa or NLLB text tower are from open_clip's
  `docs/model_profile.csv`, which gives millions with two decimals.
- licenses and zero-shot figures: see `Family.license_source` and `Family.figures_source`. A figure is absent if no source was
  found.
"""

import re
from difflib import get_close_matches

from diptych.bundle.known_families import (
    CLIPA,
    COCA,
    DATACOMP,
    DFN2B,
    DFN5B,
    EVA02,
    LAION,
    METACLIP,
    METACLIP2,
    MOBILECLIP2,
    NLLB,
    OPENAI,
    PE,
    SENTENCE_TRANSFORMERS,
    SIGLIP,
    SIGLIP2,
    SIGLIP_I18N,
    XLM_ROBERTA,
    Family,
)
from diptych.bundle.licenses import allows_commercial_use
from diptych.bundle.refusals import naflex_message
from diptych.core.paths import path_kind
from diptych.core.settings import settings

PREFIX = "hf:"
"""Prefix of the address of a model on the Hugging Face hub."""


@settings
class KnownModel:
    """A model that has a short name."""

    name: str
    """The short name, such as `siglip2-b-32-256`."""
    family: Family
    """The family, with languages, license and extras."""
    hub_id: str
    """Its repository on the Hugging Face hub, such as `google/siglip2-base-patch32-256`."""
    architecture: str
    """The Diptych preset with this architecture, or a description if there is none."""
    embed_dim: int
    """Dimension of the embeddings."""
    image_px: int
    """Side length of the square input image in pixels."""
    parameters: int
    """Number of parameters of both towers."""
    image_gflops: float
    """Operations for one image in billions; a multiply-add counts as two."""
    imagenet_top1: float | None
    """Published zero-shot top-1 accuracy on ImageNet in percent (`Family.figures_source`); None if no source was found."""

    @property
    def address(self) -> str:
        """Address that `diptych.load` reads, such as `hf:google/siglip2-base-patch32-256`."""
        return f"{PREFIX}{self.hub_id}"

    @property
    def allows_commercial_use(self) -> bool | None:
        """Whether the license allows commercial use; None if that is not known."""
        return None if self.family.license is None else allows_commercial_use(self.family.license)


_Row = tuple[str, Family, str, str, int, int, int, float, float | None]
"""The fields of a `KnownModel` in order."""
# fmt: off
_ROWS: tuple[_Row, ...] = (
    ("clip-vit-b-32", OPENAI, "openai/clip-vit-base-patch32", "vit-b-32-quickgelu", 512, 224, 151_277_313, 8.82, 63.2),
    ("clip-vit-b-16", OPENAI, "openai/clip-vit-base-patch16",
     "vit-b-16-quickgelu", 512, 224, 149_620_737, 35.13, 68.6),
    ("clip-vit-l-14", OPENAI, "openai/clip-vit-large-patch14",
     "vit-l-14-quickgelu", 768, 224, 427_616_513, 162.03, 75.3),
    ("clip-vit-l-14-336", OPENAI, "openai/clip-vit-large-patch14-336",
     "vit-l-14-336-quickgelu", 768, 336, 427_944_193, 381.92, 76.2),
    ("laion2b-b-32", LAION, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "vit-b-32", 512, 224, 151_277_313, 8.82, 66.6),
    ("laion2b-b-16", LAION, "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "vit-b-16", 512, 224, 149_620_737, 35.13, 70.2),
    ("laion2b-l-14", LAION, "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "vit-l-14", 768, 224, 427_616_513, 162.03, 75.3),
    ("laion2b-h-14", LAION, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "vit-h-14", 1024, 224, 986_109_441, 334.59, 78.0),
    ("laion2b-g-14", LAION, "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
     "ViT-g/14", 1024, 224, 1_366_678_273, 534.06, 78.5),
    ("laion2b-bigg-14", LAION, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
     "ViT-bigG/14", 1280, 224, 2_539_567_105, 967.5, 80.1),
    ("datacomp-b-32", DATACOMP, "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
     "vit-b-32", 512, 224, 151_277_313, 8.82, 69.2),
    ("datacomp-b-32-256", DATACOMP, "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
     "ViT-B/32 at 256 px", 512, 256, 151_288_833, 11.5, 72.8),
    ("datacomp-b-16", DATACOMP, "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
     "vit-b-16", 512, 224, 149_620_737, 35.13, 73.5),
    ("datacomp-l-14", DATACOMP, "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
     "vit-l-14", 768, 224, 427_616_513, 162.03, 79.2),
    ("dfn2b-b-16", DFN2B, "apple/DFN2B-CLIP-ViT-B-16", "vit-b-16-quickgelu", 512, 224, 149_620_737, 35.13, 76.2),
    ("dfn2b-l-14", DFN2B, "apple/DFN2B-CLIP-ViT-L-14", "vit-l-14-quickgelu", 768, 224, 427_616_513, 162.03, 81.4),
    ("dfn2b-l-14-39b", DFN2B, "apple/DFN2B-CLIP-ViT-L-14-39B", "vit-l-14", 768, 224, 427_616_513, 162.03, 82.2),
    ("dfn5b-h-14", DFN5B, "apple/DFN5B-CLIP-ViT-H-14", "vit-h-14-quickgelu", 1024, 224, 986_109_441, 334.59, 83.4),
    ("dfn5b-h-14-378", DFN5B, "apple/DFN5B-CLIP-ViT-H-14-378",
     "ViT-H/14 at 378 px", 1024, 378, 986_714_881, 1006.96, 84.4),
    ("metaclip-b-32", METACLIP, "facebook/metaclip-b32-fullcc2.5b",
     "vit-b-32-quickgelu", 512, 224, 151_277_313, 8.82, 67.6),
    ("metaclip-b-16", METACLIP, "facebook/metaclip-b16-fullcc2.5b",
     "vit-b-16-quickgelu", 512, 224, 149_620_737, 35.13, 72.1),
    ("metaclip-l-14", METACLIP, "facebook/metaclip-l14-fullcc2.5b",
     "vit-l-14-quickgelu", 768, 224, 427_616_513, 162.03, 79.2),
    ("metaclip-h-14", METACLIP, "facebook/metaclip-h14-fullcc2.5b",
     "vit-h-14-quickgelu", 1024, 224, 986_109_441, 334.59, 80.5),
    ("metaclip2-s-16", METACLIP2, "facebook/metaclip-2-worldwide-s16",
     "ViT-S/16, XLM-V tokenizer", 384, 224, 389_510_401, 9.2, None),
    ("metaclip2-b-32", METACLIP2, "facebook/metaclip-2-worldwide-b32",
     "ViT-B/32, XLM-V tokenizer", 512, 224, 587_614_465, 8.82, None),
    ("metaclip2-b-16", METACLIP2, "facebook/metaclip-2-worldwide-b16",
     "ViT-B/16, XLM-V tokenizer", 512, 224, 585_957_889, 35.13, None),
    ("metaclip2-l-14", METACLIP2, "facebook/metaclip-2-worldwide-l14",
     "ViT-L/14, XLM-V tokenizer", 768, 224, 1_082_122_241, 162.03, None),
    ("metaclip2-h-14", METACLIP2, "facebook/metaclip-2-worldwide-huge-quickgelu",
     "ViT-H/14, XLM-V tokenizer", 1024, 224, 1_858_783_745, 334.59, 81.3),
    ("metaclip2-h-14-378", METACLIP2, "facebook/metaclip-2-worldwide-huge-378",
     "ViT-H/14 at 378 px, XLM-V tokenizer", 1024, 378, 1_859_389_185, 1006.96, None),
    ("metaclip2-bigg-14", METACLIP2, "facebook/metaclip-2-worldwide-giant",
     "ViT-bigG/14, XLM-V tokenizer", 1280, 224, 3_630_409_985, 967.5, None),
    ("metaclip2-bigg-14-378", METACLIP2, "facebook/metaclip-2-worldwide-giant-378",
     "ViT-bigG/14 at 378 px, XLM-V tokenizer", 1280, 378, 3_631_197_057, 2858.45, None),
    ("siglip-b-16-224", SIGLIP, "google/siglip-base-patch16-224", "SigLIP B/16", 768, 224, 203_155_970, 35.42, 76.0),
    ("siglip-b-16-256", SIGLIP, "google/siglip-base-patch16-256", "SigLIP B/16", 768, 256, 203_202_050, 46.82, 76.5),
    ("siglip-b-16-384", SIGLIP, "google/siglip-base-patch16-384", "SigLIP B/16", 768, 384, 203_447_810, 112.13, 78.5),
    ("siglip-b-16-512", SIGLIP, "google/siglip-base-patch16-512", "SigLIP B/16", 768, 512, 203_791_874, 216.24, 79.1),
    ("siglip-l-16-256", SIGLIP, "google/siglip-large-patch16-256",
     "SigLIP L/16", 1024, 256, 652_150_786, 162.56, 80.5),
    ("siglip-l-16-384", SIGLIP, "google/siglip-large-patch16-384",
     "SigLIP L/16", 1024, 384, 652_478_466, 383.85, 82.1),
    ("siglip-so400m-14-224", SIGLIP, "google/siglip-so400m-patch14-224",
     "SigLIP SO400M/14", 1152, 224, 877_360_306, 220.35, 82.0),
    ("siglip-so400m-14-384", SIGLIP, "google/siglip-so400m-patch14-384",
     "SigLIP SO400M/14", 1152, 384, 877_960_498, 670.35, 83.1),
    ("siglip-b-16-256-multilingual", SIGLIP_I18N, "google/siglip-base-patch16-256-multilingual",
     "SigLIP B/16", 768, 256, 370_626_050, 46.82, 75.1),
    ("siglip-so400m-16-256-multilingual", SIGLIP_I18N, "google/siglip-so400m-patch16-256-i18n",
     "SigLIP SO400M/16", 1152, 256, 1_127_430_706, 220.46, None),
    ("siglip2-b-32-256", SIGLIP2, "google/siglip2-base-patch32-256",
     "SigLIP 2 B/32", 768, 256, 376_856_066, 11.49, 74.0),
    ("siglip2-b-16-224", SIGLIP2, "google/siglip2-base-patch16-224",
     "SigLIP 2 B/16", 768, 224, 375_187_970, 35.42, 78.2),
    ("siglip2-b-16-256", SIGLIP2, "google/siglip2-base-patch16-256",
     "SigLIP 2 B/16", 768, 256, 375_234_050, 46.82, 79.1),
    ("siglip2-b-16-384", SIGLIP2, "google/siglip2-base-patch16-384",
     "SigLIP 2 B/16", 768, 384, 375_479_810, 112.13, 80.6),
    ("siglip2-b-16-512", SIGLIP2, "google/siglip2-base-patch16-512",
     "SigLIP 2 B/16", 768, 512, 375_823_874, 216.24, 81.2),
    ("siglip2-l-16-256", SIGLIP2, "google/siglip2-large-patch16-256",
     "SigLIP 2 L/16", 1024, 256, 881_526_786, 162.56, 82.5),
    ("siglip2-l-16-384", SIGLIP2, "google/siglip2-large-patch16-384",
     "SigLIP 2 L/16", 1024, 384, 881_854_466, 383.85, 83.1),
    ("siglip2-l-16-512", SIGLIP2, "google/siglip2-large-patch16-512",
     "SigLIP 2 L/16", 1024, 512, 882_313_218, 727.49, 83.5),
    ("siglip2-so400m-14-224", SIGLIP2, "google/siglip2-so400m-patch14-224",
     "SigLIP 2 SO400M/14", 1152, 224, 1_135_463_602, 220.35, 83.2),
    ("siglip2-so400m-14-384", SIGLIP2, "google/siglip2-so400m-patch14-384",
     "SigLIP 2 SO400M/14", 1152, 384, 1_136_008_498, 670.35, 84.1),
    ("siglip2-so400m-16-256", SIGLIP2, "google/siglip2-so400m-patch16-256",
     "SigLIP 2 SO400M/16", 1152, 256, 1_135_670_962, 220.46, 83.4),
    ("siglip2-so400m-16-384", SIGLIP2, "google/siglip2-so400m-patch16-384",
     "SigLIP 2 SO400M/16", 1152, 384, 1_136_039_602, 518.94, 84.1),
    ("siglip2-so400m-16-512", SIGLIP2, "google/siglip2-so400m-patch16-512",
     "SigLIP 2 SO400M/16", 1152, 512, 1_136_555_698, 979.61, 84.3),
    ("siglip2-giant-16-256", SIGLIP2, "google/siglip2-giant-opt-patch16-256",
     "SigLIP 2 g-opt/16", 1536, 256, 1_871_393_906, 599.0, 84.5),
    ("siglip2-giant-16-384", SIGLIP2, "google/siglip2-giant-opt-patch16-384",
     "SigLIP 2 g-opt/16", 1536, 384, 1_871_885_426, 1392.98, 85.0),
    ("pe-core-t-16-384", PE, "timm/PE-Core-T-16-384", "PE-Core T/16", 512, 384, 69_546_113, 9.45, 62.1),
    ("pe-core-s-16-384", PE, "timm/PE-Core-S-16-384", "PE-Core S/16", 512, 384, 87_188_225, 31.32, 72.7),
    ("pe-core-b-16", PE, "timm/PE-Core-B-16", "PE-Core B/16", 1024, 224, 447_660_545, 35.6, 78.4),
    ("pe-core-l-14-336", PE, "timm/PE-Core-L-14-336", "PE-Core L/14", 1024, 336, 671_138_817, 384.36, 83.5),
    ("pe-core-bigg-14-448", PE, "timm/PE-Core-bigG-14-448", "PE-Core G/14", 1280, 448, 2_419_267_841, 4118.63, 85.4),
    ("mobileclip2-s0", MOBILECLIP2, "timm/MobileCLIP2-S0-OpenCLIP",
     "MobileCLIP2-S0", 512, 256, 74_835_073, 4.79, 71.5),
    ("mobileclip2-s2", MOBILECLIP2, "timm/MobileCLIP2-S2-OpenCLIP",
     "MobileCLIP2-S2", 512, 256, 99_243_329, 15.69, 77.2),
    ("mobileclip2-b", MOBILECLIP2, "timm/MobileCLIP2-B-OpenCLIP", "MobileCLIP2-B", 512, 224, 149_777_153, 35.42, 79.4),
    ("mobileclip2-s3", MOBILECLIP2, "timm/MobileCLIP2-S3-OpenCLIP",
     "MobileCLIP2-S3", 768, 256, 248_885_953, 29.64, 80.7),
    ("mobileclip2-s4", MOBILECLIP2, "timm/MobileCLIP2-S4-OpenCLIP",
     "MobileCLIP2-S4", 768, 256, 445_435_137, 55.54, 81.9),
    ("mobileclip2-l-14", MOBILECLIP2, "timm/MobileCLIP2-L-14-OpenCLIP",
     "MobileCLIP2-L/14", 768, 224, 427_617_281, 162.03, 81.9),
    ("eva02-b-16", EVA02, "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
     "EVA02-B/16", 512, 224, 149_691_137, 35.13, 74.7),
    ("eva02-l-14", EVA02, "timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k",
     "EVA02-L/14", 768, 224, 427_755_457, 162.0, 79.8),
    ("eva02-l-14-336", EVA02, "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k",
     "EVA02-L/14", 768, 336, 428_083_137, 381.86, 80.4),
    ("eva02-e-14", EVA02, "timm/eva02_enormous_patch14_clip_224.laion2b_s4b_b115k",
     "EVA02-E/14", 1024, 224, 4_704_589_569, 2264.33, 82.0),
    ("eva02-e-14-plus", EVA02, "timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k",
     "EVA02-E/14+", 1024, 224, 5_044_889_089, 2264.33, 82.0),
    ("clipa-l-14", CLIPA, "UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B", "CLIPA L/14", 768, 224, 414_210_561, 162.03, 79.6),
    ("clipa-l-14-336", CLIPA, "UCSC-VLAA/ViT-L-14-CLIPA-336-datacomp1B",
     "CLIPA L/14", 768, 336, 414_538_241, 381.92, 80.3),
    ("clipa-h-14", CLIPA, "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B", "CLIPA H/14", 1024, 224, 968_235_009, 334.59, 81.5),
    ("clipa-h-14-336", CLIPA, "UCSC-VLAA/ViT-H-14-CLIPA-336-datacomp1B",
     "CLIPA H/14", 1024, 336, 968_644_609, 781.45, 81.8),
    ("clipa-bigg-14", CLIPA, "UCSC-VLAA/ViT-bigG-14-CLIPA-datacomp1B",
     "CLIPA bigG/14", 1280, 224, 2_517_223_937, 967.5, 82.7),
    ("clipa-bigg-14-336", CLIPA, "UCSC-VLAA/ViT-bigG-14-CLIPA-336-datacomp1B",
     "CLIPA bigG/14", 1280, 336, 2_517_756_417, 2231.15, 83.1),
    ("coca-b-32", COCA, "laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "CoCa B/32", 512, 224, 253_560_065, 9.19, 63.3),
    ("coca-l-14", COCA, "laion/CoCa-ViT-L-14-laion2B-s13B-b90k", "CoCa L/14", 768, 224, 638_450_177, 163.64, 75.6),
    ("xlm-roberta-b-32", XLM_ROBERTA, "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
     "ViT-B/32, XLM-RoBERTa base", 512, 224, 366_120_000, 8.82, 62.3),
    ("xlm-roberta-h-14", XLM_ROBERTA, "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k",
     "ViT-H/14, XLM-RoBERTa large", 1024, 224, 1_193_010_000, 334.59, 77.0),
    ("nllb-clip-base", NLLB, "visheratin/nllb-clip-base-oc", "ViT-B/32, NLLB 600M", 512, 224, 501_890_000, 8.82, 24.3),
    ("nllb-clip-large", NLLB, "visheratin/nllb-clip-large-oc",
     "ViT-H/14, NLLB 1.3B", 1024, 224, 1_399_220_000, 334.59, 36.7),
    ("nllb-siglip-base", NLLB, "visheratin/nllb-clip-base-siglip",
     "SigLIP B/16, NLLB 600M", 768, 384, 507_470_000, 112.13, 39.1),
    ("nllb-siglip-large", NLLB, "visheratin/nllb-clip-large-siglip",
     "SigLIP SO400M/14, NLLB 1.3B", 1152, 384, 1_195_500_000, 670.35, 51.8),
    ("sbert-clip-b-32", SENTENCE_TRANSFORMERS, "sentence-transformers/clip-ViT-B-32",
     "vit-b-32-quickgelu", 512, 224, 151_277_313, 8.82, 63.3),
    ("sbert-clip-b-16", SENTENCE_TRANSFORMERS, "sentence-transformers/clip-ViT-B-16",
     "vit-b-16-quickgelu", 512, 224, 149_620_737, 35.13, 68.1),
    ("sbert-clip-l-14", SENTENCE_TRANSFORMERS, "sentence-transformers/clip-ViT-L-14",
     "vit-l-14-quickgelu", 768, 224, 427_616_513, 162.03, 75.4),
)
# fmt: on


def _known(row: _Row) -> KnownModel:
    name, family, hub_id, architecture, embed_dim, image_px, parameters, image_gflops, imagenet_top1 = row
    return KnownModel(
        name=name,
        family=family,
        hub_id=hub_id,
        architecture=architecture,
        embed_dim=embed_dim,
        image_px=image_px,
        parameters=parameters,
        image_gflops=image_gflops,
        imagenet_top1=imagenet_top1,
    )


KNOWN_MODELS: dict[str, KnownModel] = {row[0]: _known(row) for row in _ROWS}
"""All known models by short name."""
_BY_HUB_ID = {model.hub_id: model for model in KNOWN_MODELS.values()}
_NUM_SUGGESTED = 3
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def resolve_name(name: str) -> str:
    """Return the hub address of a model's short name; any other name is returned unchanged.

    A file or folder with that name in the working directory has precedence over the model.

    >>> resolve_name("siglip2-b-32-256"), resolve_name("runs/mine/bundle")
    ('hf:google/siglip2-base-patch32-256', 'runs/mine/bundle')
    """
    model = KNOWN_MODELS.get(name)
    return name if model is None or path_kind(name) is not None else model.address


def known_model(address: str) -> KnownModel | None:
    """Return the known model at a hub address; None if there is none. A revision in the address is ignored.

    >>> known_model("hf:google/siglip2-base-patch32-256").name
    'siglip2-b-32-256'
    """
    identifier = address.removeprefix(PREFIX).partition("@")[0]
    return _BY_HUB_ID.get(identifier) if address.startswith(PREFIX) else None


def missing_model(name: str) -> str:
    """Return the error message for a path without a model. It suggests short names or a hub address.

    The message about a name with `naflex` says that NaFlex models are not supported.

    >>> missing_model("eva02-b16")
    "eva02-b16: no such file or folder; did you mean 'eva02-b-16'?"
    >>> missing_model("openai/clip-vit-base-patch32")
    'openai/clip-vit-base-patch32: no such file or folder; for a model on the hub, write hf:openai/clip-vit-base-patch32'
    """
    if "naflex" in name.lower() and "/" not in name:
        return naflex_message(name)
    message = f"{name}: no such file or folder"
    near = near_names(name)
    if near:
        return f"{message}; did you mean {' or '.join(repr(one) for one in near)}?"
    return f"{message}; for a model on the hub, write {PREFIX}{name}" if _HUB_ID.fullmatch(name) else message


def near_names(name: str) -> list[str]:
    """Return up to three short names that resemble a name, the most similar one first, or that start with it.

    >>> near_names("SigLIP2-SO400M-16-256")[0]
    'siglip2-so400m-16-256'
    >>> near_names("siglip2")[0]
    'siglip2-b-32-256'
    """
    if "/" in name:
        return []
    near = get_close_matches(name.lower(), KNOWN_MODELS, n=_NUM_SUGGESTED, cutoff=0.75)
    family = [known for known in KNOWN_MODELS if known.startswith(f"{name.lower()}-")]
    return near or family[:_NUM_SUGGESTED]


def near_hub_ids(identifier: str) -> list[str]:
    """Return up to three hub ids of known models that resemble an id, the most similar one first.

    >>> near_hub_ids("google/siglip2-base-patch32-265")[0]
    'google/siglip2-base-patch32-256'
    """
    lower = {hub_id.lower(): hub_id for hub_id in _BY_HUB_ID}
    return [lower[near] for near in get_close_matches(identifier.lower(), lower, n=_NUM_SUGGESTED, cutoff=0.75)]
