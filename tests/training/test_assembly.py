from dataclasses import replace

from diptych.models.clip import CLIP
from diptych.tokenizers.character import CharacterTokenizer
from diptych.training.setup import assemble
from tests.conftest import TINY_MODEL, TINY_RUN
from tests.training.test_step import batch_of


def test_what_is_moved_are_weights_their_averages_and_what_the_optimizer_keeps_of_each() -> None:
    model = CLIP(TINY_MODEL)
    assembly = assemble(replace(TINY_RUN, ema=0.9), model, CharacterTokenizer.train(["a"], context_length=9))
    num = len(list(model.parameters()))
    # Trained, averaged, and as it is measured.
    assert len({tensor.data_ptr() for tensor in assembly.moved()}) == 3 * num
    assembly.step(batch_of(TINY_MODEL), lr=1e-3, seed=0)
    assert len({tensor.data_ptr() for tensor in assembly.moved()}) == (3 + 3) * num
    plain = assemble(TINY_RUN, model, CharacterTokenizer.train(["a"], context_length=9))
    assert len(list(plain.moved())) == num
