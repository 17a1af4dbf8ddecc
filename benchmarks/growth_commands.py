"""Commands whose costs `growth.py` measures beside those of an index: `serve`, `train`, `runs serve` and `tune`.

A number of pictures stands for as many rows of a table, as many logged steps in runs of 5,000, and a trial per 500.
"""

import csv
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from drawn import Collection
from optuna import load_study
from optuna.trial import create_trial
from PIL import Image

from diptych.recipes.recipe import recipe
from diptych.training.config import write_config
from diptych.tuning.storage import opened_storage, sqlite_url
from diptych.tuning.study import quiet_optuna

CLIENTS, SECONDS = 16, 5.0
STEPS_OF_RUN, PICTURES_OF_TRIAL = 5_000, 500
_LINKED = 100
"""Picture files, which all rows of a table link to: the cost of reading a table is that of its rows."""


@contextmanager
def _serving(*words: str) -> Iterator[str]:
    """The address of a server of this command."""
    with subprocess.Popen(
        [sys.executable, "-m", "diptych", *words, "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            lines = (line.split() for line in process.stdout)
            url = next(word for line in lines for word in line if word.startswith("http://"))
            _wait_for(url)
            yield url
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    """Return as soon as the server answers; the first moments are not measured."""
    while True:
        try:
            connection = http.client.HTTPConnection(urlsplit(url).netloc)
            connection.request("GET", "/")
            connection.getresponse()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)


def serve_filtered(collection: Collection, *, where: str) -> float:
    """Milliseconds an answer of a server, with clients that each ask for the nearest under a filter again and again."""
    body = json.dumps({"text": "a red circle", "limit": 10, "where": where})
    with _serving("serve", str(collection.clip.path), "--index", str(collection.index)) as url:

        def ask_until(end: float) -> int:
            connection, num = http.client.HTTPConnection(urlsplit(url).netloc), 0
            while time.perf_counter() < end:
                connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                assert len(json.load(answer)["results"]) == 10
                num += 1
            return num

        taken, num = 0.0, 0
        for seconds in (1.0, SECONDS):  # The first does not count.
            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as clients:
                num = sum(clients.map(ask_until, [began + seconds] * CLIENTS))
            taken = time.perf_counter() - began
    return 1e3 * taken / num


def train_again(collection: Collection) -> float:
    """From the second start on a table of as many rows to the first step."""
    folder = collection.index.parent / "table"
    _write_table(folder, collection.num)
    _first_step(folder / "rows.csv", folder / "first")
    return _first_step(folder / "rows.csv", folder / "second")


def _first_step(table: Path, run: Path) -> float:
    """Milliseconds from the start of a training to its first step; it is killed then."""
    words = ["train", "small-data", "--data", f"csv:{table}", "--batch-size", "8", "--validation.samples", "8"]
    events, began = run / "events.jsonl", time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "diptych", *words, "--out", str(run)], stdout=subprocess.DEVNULL
    ) as process:
        while not (events.exists() and '"step": 1,' in events.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        taken = 1e3 * (time.perf_counter() - began)
        process.kill()
    return taken


def _write_table(folder: Path, num: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(num):
            path = folder / f"{number // 5000}" / f"{number:08d}.png"
            if number % 5000 == 0:
                path.parent.mkdir()
            source = folder / "0" / f"{number % _LINKED:08d}.png"
            if number < _LINKED:
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
            else:
                os.link(source, path)
            table.writerow([path.relative_to(folder), " ".join(f"word{word}" for word in rng.integers(2000, size=8))])


def _run(*words: str) -> float:
    """Milliseconds of a command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "diptych", *words], check=True, capture_output=True)
    return 1e3 * (time.perf_counter() - began)


def show_runs(collection: Collection, *, is_first: bool) -> float:
    """A request for all curves of as many steps, the first one of a server or the next."""
    folder = collection.index.parent / "runs"
    for start in range(0, collection.num, STEPS_OF_RUN):
        run = folder / f"run-{start // STEPS_OF_RUN:03d}"
        if run.exists():
            continue
        run.mkdir(parents=True)
        write_config(recipe("small-data"), run / "config.yaml")
        steps = range(1, min(STEPS_OF_RUN, collection.num - start) + 1)
        events = ({"step": step, "elapsed_s": step / 2, "loss": 5 / step, "lr": 1e-3} for step in steps)
        (run / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    with _serving("runs", "serve", str(folder)) as url:
        taken = []
        for _ in range(2):
            connection = http.client.HTTPConnection(urlsplit(url).netloc)
            began = time.perf_counter()
            connection.request("GET", "/api/runs")
            answer = connection.getresponse()
            assert json.load(answer)
            taken.append(1e3 * (time.perf_counter() - began))
    return taken[0 if is_first else 1]


def try_again(collection: Collection) -> float:
    """One more trial of a study: the whole command, with one step."""
    folder, data = collection.index.parent / "study", collection.index.parent / "small"
    _write_table(data, 300)
    words = [
        "tune",
        "small-data",
        "--data",
        f"csv:{data / 'rows.csv'}",
        "--out",
        str(folder),
        "--steps",
        "1",
        "--repeats",
        "0",
    ]
    _run(*words, "--trials", "2")
    num = max(0, collection.num // PICTURES_OF_TRIAL - 2)
    with quiet_optuna(), opened_storage(sqlite_url(folder)) as storage:
        study = load_study(study_name=storage.get_all_studies()[0].study_name, storage=storage)
        done = study.get_trials()[-1]
        for number in range(num):
            params = {**done.params, "lr": done.params["lr"] * (1 - 1e-5 * number)}
            distributions, attributes = done.distributions, done.user_attrs
            study.add_trial(
                create_trial(value=done.value, params=params, distributions=distributions, user_attrs=attributes)
            )
    return _run(*words, "--trials", str(num + 3))
