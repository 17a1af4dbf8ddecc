"""Peak rates of graphics cards, from the datasheets and white papers of NVIDIA."""

import re
from typing import NamedTuple

from diptych.core.precision import Precision

_TERA = 1e12


class _Rates(NamedTuple):
    """Dense rates in 10^12 operations per second; products of 16-bit numbers are summed in float32. None: not supported."""

    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


def _same(half: float, tf32: float, fp32: float) -> _Rates:
    return _Rates(half, half, tf32, fp32)


_RATES: dict[str, _Rates] = {
    # Blackwell
    "GB300": _same(2500.0, 1250.0, 80.0),
    "GB200": _same(2500.0, 1250.0, 80.0),
    "B200": _same(2250.0, 1125.0, 75.0),
    "RTX 5090": _same(209.5, 104.8, 104.8),
    "RTX 5080": _same(112.6, 56.3, 56.3),
    # Hopper
    "GH200": _same(989.4, 494.7, 66.9),
    "H200": _same(989.4, 494.7, 66.9),
    "H200 NVL": _same(835.5, 417.5, 60.0),
    "H100": _same(989.4, 494.7, 66.9),
    "H100 NVL": _same(835.5, 417.5, 60.0),
    "H100 PCIE": _same(756.5, 378.0, 51.2),
    "H800": _same(989.4, 494.7, 66.9),
    "H20": _same(148.0, 74.0, 44.0),
    # Ada
    "L40S": _same(362.1, 183.2, 91.6),
    "L40": _same(181.1, 90.5, 90.5),
    "L4": _same(121.0, 60.0, 30.3),
    "RTX 6000 ADA GENERATION": _same(364.2, 182.1, 91.1),
    "RTX 4090": _same(165.2, 82.6, 82.6),
    "RTX 4080": _same(97.5, 48.7, 48.7),
    # Ampere
    "A100": _same(312.0, 156.0, 19.5),
    "A100 PCIE": _same(312.0, 156.0, 19.5),
    "A800": _same(312.0, 156.0, 19.5),
    "A30": _same(165.0, 82.0, 10.3),
    "A40": _same(149.7, 74.8, 37.4),
    "A10": _same(125.0, 62.5, 31.2),
    "A10G": _same(70.0, 35.0, 31.5),
    "RTX A6000": _same(154.8, 77.4, 38.7),
    "RTX A5000": _same(111.1, 55.6, 27.8),
    "RTX A4000": _same(76.7, 38.3, 19.2),
    "RTX 3090 TI": _same(80.0, 40.0, 40.0),
    "RTX 3090": _same(71.2, 35.6, 35.6),
    "RTX 3080": _same(59.5, 29.8, 29.8),
    "RTX 3070": _same(40.6, 20.3, 20.3),
    # Turing and Volta
    "T4": _Rates(65.0, None, None, 8.1),
    "RTX 2080 TI": _Rates(53.8, None, None, 13.4),
    "V100": _Rates(125.0, None, None, 15.7),
    "V100 PCIE": _Rates(112.0, None, None, 14.0),
}
"""Rates by the name of the card without vendor, memory and the socket SXM; see `_key`."""
_LEFT_OUT = {"NVIDIA", "TESLA", "GEFORCE", "HBM2E", "HBM3", "HBM3E", "SXM2", "SXM3", "SXM4", "SXM5"}


def peak_flops(name: str, precision: Precision, *, tf32: bool = False) -> float | None:
    """The peak rate of a card in operations per second, without sparsity; None for unknown cards and unsupported precisions.

    Args:
        name: name of the card, as from `torch.cuda.get_device_name`.
        precision: dtype of the matrix products.
        tf32: whether float32 products are computed in TF32, where the card can; it has no effect for other precisions.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16")
    989400000000000.0
    >>> peak_flops("NVIDIA A100-SXM4-40GB", "fp32"), peak_flops("NVIDIA A100-SXM4-40GB", "fp32", tf32=True)
    (19500000000000.0, 156000000000000.0)
    >>> peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16") is None
    True
    """
    rates = _RATES.get(_key(name))
    if rates is None:
        return None
    rate = rates.tf32 or rates.fp32 if precision == "fp32" and tf32 else getattr(rates, precision)
    return None if rate is None else rate * _TERA


def _key(name: str) -> str:
    """A card's name as in `_RATES`.

    Other words, such as `Laptop` or the `MIG` of a part of a card, stay in the key, so that such cards are unknown.

    >>> _key("NVIDIA A100 80GB PCIe"), _key("Tesla V100-SXM2-32GB"), _key("NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    ('A100 PCIE', 'V100', 'A100 MIG 1G.5GB')
    """
    words = re.split(r"[\s-]+", name.upper())
    return " ".join(word for word in words if word not in _LEFT_OUT and not re.fullmatch(r"\d+GB", word))
