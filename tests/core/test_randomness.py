import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ConfigError
from diptych.core.randomness import keyed_generator, keyed_permutation, stable_fraction, stable_hash
from diptych.device.hardware import choose_device


def test_values_never_change() -> None:
    """Golden: other values would move every split and unsettle every run."""
    assert stable_hash("photo.jpg", 3) == 3553299070811441302
    assert stable_fraction(0, "x") == 0.3824217794337163
    assert keyed_permutation(8, 0, "epoch", 1).tolist() == [1, 3, 6, 7, 5, 0, 4, 2]
    np.testing.assert_allclose(keyed_generator(0, "a").random(3), [0.614305, 0.187206, 0.278515], atol=1e-6)


@given(st.integers(0, 300), st.integers(0, 1000))
def test_permutation_holds_every_number_once(size: int, seed: int) -> None:
    assert sorted(keyed_permutation(size, seed).tolist()) == list(range(size))


def test_parts_do_not_run_into_each_other() -> None:
    keys: list[tuple[int | str, ...]] = [("ab", "c"), ("a", "bc"), (1, "c"), ("1", "c"), (1,), ("1",), (), ("",)]
    assert len({stable_hash(*key) for key in keys}) == len(keys)


def test_fractions_are_spread_evenly() -> None:
    shares = [stable_fraction(f"photo-{i}.jpg", "split") for i in range(4000)]
    assert 0 <= min(shares) < max(shares) < 1
    counts = np.histogram(shares, bins=10, range=(0, 1))[0]
    assert counts.min() > 330
    assert counts.max() < 470


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"this machine has no device 'tpu'; it has:.*cpu"):
        choose_device("tpu")
    assert choose_device("cpu").type == "cpu"
