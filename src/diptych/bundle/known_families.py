"""The families of the known models: licenses, languages, and sources of their figures. Needs no PyTorch."""

from diptych.core.settings import settings


@settings
class Family:
    """Facts that the models of a family share."""

    name: str
    """Name of the family."""
    languages: str
    """Languages of the training texts, in words."""
    license: str | None
    """License of the weights: an SPDX id, or the hub's license id; None if the models' pages do not state one."""
    license_source: str
    """Where the license is stated."""
    figures_source: str
    """Where the zero-shot figures are published."""
    extras: tuple[str, ...]
    """Extras of Diptych, besides `train`, that you need to load a model from the hub."""


OPENAI = Family(
    name="OpenAI CLIP",
    languages="English",
    license="MIT",
    license_source="the LICENSE of github.com/openai/CLIP",
    figures_source="Radford et al. 2021, table 11",
    extras=("hub",),
)
LAION = Family(
    name="LAION",
    languages="English",
    license="MIT",
    license_source="the models' hub pages",
    figures_source="README and docs/PRETRAINED.md of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
DATACOMP = Family(
    name="DataComp",
    languages="English",
    license="MIT",
    license_source="the models' hub pages",
    figures_source="README and docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
DFN2B = Family(
    name="DFN-2B",
    languages="English",
    license="apple-sample-code-license",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip; for the 39B model its hub page",
    extras=("hub",),
)
DFN5B = Family(
    name="DFN-5B",
    languages="English",
    license="apple-amlr",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
METACLIP = Family(
    name="MetaCLIP",
    languages="English",
    license="CC-BY-NC-4.0",
    license_source="the models' hub pages",
    figures_source="README of github.com/facebookresearch/MetaCLIP",
    extras=("hub",),
)
METACLIP2 = Family(
    name="MetaCLIP 2",
    languages="more than 300 languages",
    license="CC-BY-NC-4.0",
    license_source="README of github.com/facebookresearch/MetaCLIP",
    figures_source="Chuang et al. 2025 (arXiv 2507.22062), abstract",
    extras=("hub",),
)
SIGLIP = Family(
    name="SigLIP",
    languages="English",
    license="Apache-2.0",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
SIGLIP_I18N = Family(
    name="SigLIP, multilingual",
    languages="more than 100 languages",
    license="Apache-2.0",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
SIGLIP2 = Family(
    name="SigLIP 2",
    languages="109 languages",
    license="Apache-2.0",
    license_source="the models' hub pages",
    figures_source="README_siglip2.md of github.com/google-research/big_vision",
    extras=("hub",),
)
PE = Family(
    name="Perception Encoder",
    languages="English",
    license="Apache-2.0",
    license_source="README of github.com/facebookresearch/perception_models",
    figures_source="README of github.com/facebookresearch/perception_models",
    extras=(
        "hub",
        "towers",
    ),
)
MOBILECLIP2 = Family(
    name="MobileCLIP 2",
    languages="English",
    license="apple-amlr",
    license_source="LICENSE_MODELS of github.com/apple/ml-mobileclip",
    figures_source="README of github.com/apple/ml-mobileclip",
    extras=(
        "hub",
        "towers",
    ),
)
EVA02 = Family(
    name="EVA-02",
    languages="English",
    license="MIT",
    license_source="the LICENSE of github.com/baaivision/EVA",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=(
        "hub",
        "towers",
    ),
)
CLIPA = Family(
    name="CLIPA",
    languages="English",
    license="Apache-2.0",
    license_source="LICENSE.md of github.com/UCSC-VLAA/CLIPA",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
COCA = Family(
    name="CoCa",
    languages="English",
    license="MIT",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=("hub",),
)
XLM_ROBERTA = Family(
    name="CLIP with XLM-RoBERTa",
    languages="100 languages",
    license="MIT",
    license_source="the models' hub pages",
    figures_source="docs/PRETRAINED.md of github.com/mlfoundations/open_clip",
    extras=(
        "hub",
        "towers",
    ),
)
NLLB = Family(
    name="NLLB-CLIP",
    languages="201 languages",
    license="CC-BY-NC-4.0",
    license_source="the models' hub pages",
    figures_source="docs/openclip_results.csv of github.com/mlfoundations/open_clip",
    extras=(
        "hub",
        "towers",
    ),
)
SENTENCE_TRANSFORMERS = Family(
    name="sentence-transformers",
    languages="English",
    license=None,
    license_source="the models' hub pages state none",
    figures_source="the models' hub pages",
    extras=("hub",),
)
