import gc
import multiprocessing

import torch

from diptych.core.errors import DiptychError
from diptych.device.forks import before_computing, unmoved_objects


def test_objects_are_left_alone_for_a_while() -> None:
    gc.unfreeze()
    with unmoved_objects():
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        # A few frozen objects may be deleted meanwhile, for example when a thread of an earlier test ends.
        with unmoved_objects():
            assert frozen - 100 < gc.get_freeze_count() <= frozen
        assert frozen - 100 < gc.get_freeze_count() <= frozen
    assert gc.get_freeze_count() == 0


def test_the_gpu_of_the_parent_is_refused_in_one_line_that_names_spawn() -> None:
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def compute() -> None:
        before_computing(torch.device("cpu"))
        before_computing(torch.device("cuda"))
        process = context.Process(target=child)
        process.start()
        process.join(60)

    def child() -> None:
        before_computing(torch.device("cpu"))
        before_computing(torch.device("mps"))  # Which the parent has not used.
        try:
            before_computing(torch.device("cuda"))
        except DiptychError as error:
            answer.put(str(error))

    process = context.Process(target=compute)
    process.start()
    process.join(60)
    assert not answer.empty()
    message = answer.get()
    assert "cuda" in message
    assert "'spawn'" in message
    assert "\n" not in message
