"""Train in a process that SIGKILL ends: `python -m tests.gpu.killed RUN CONFIG STEP`."""

import os
import signal
import sys
from pathlib import Path

from diptych.training.config import read_config
from diptych.training.run import train
from tests.training.listener import Listener

if __name__ == "__main__":
    run, config, step = sys.argv[1:]
    killer = Listener(at=int(step), do=lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(read_config(Path(config)), run, observers=[killer])
