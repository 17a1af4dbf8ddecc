"""Train a model on a folder of captioned pictures, and search them.

The script draws its pictures, so that it needs no data; replace them with your own. It takes a few seconds and trains for only
a hundred steps, which is too short for good results: `diptych demo` trains longer.
"""

import json
import tempfile
from pathlib import Path

import diptych
from diptych.core.settings import override
from diptych.data.sources.shapes import ShapesSource
from diptych.images.decode import decode
from diptych.recipes.recipe import recipe


def write_pictures(folder: Path, *, num: int) -> Path:
    """Draw pictures into a folder, and write a JSON file with the captions of each picture."""
    source = ShapesSource(num_train=num)
    (folder / "pictures").mkdir()
    rows = []
    for i in range(num):
        sample = source[i]
        name = f"pictures/{sample.key}.png"
        decode(sample.image).save(folder / name)
        rows.append({"image": name, "captions": list(sample.captions)})
    captions = folder / "captions.json"
    captions.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return captions


def main() -> None:
    """Write pictures and captions, train, load the bundle, search."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions = write_pictures(folder, num=200)

        # A recipe is a complete configuration; change any setting by its dotted path.
        config = override(
            recipe("demo"),
            {
                "recipe": "my-pictures",
                "data.source": f"json:{captions}",
                "data.val_fraction": 0.1,
                "data.workers": 0,
                "schedule.epochs": None,
                "schedule.steps": 100,
                "schedule.warmup_steps": 10,
                "batch_size": 32,
                "validation.times": 2,
                "device": "cpu",
            },
        )
        result = diptych.train(config, folder / "run")
        assert result.bundle is not None
        assert result.retrieval is not None
        print(f"{result.steps} steps; R@1 text to image {result.retrieval.text_to_image.r1:.0%}")

        clip = diptych.load(result.bundle, device="cpu")
        shown = {Path(row["image"]).name: row["captions"][-1] for row in json.loads(captions.read_text("utf-8"))}
        for text in ("a red circle", "a blue square"):
            print(text)
            for found in clip.rank_images(text, folder / "pictures", top=3).results:
                file = Path(found.item).name
                print(f"  {found.score:.2f}  {file}: {shown[file]}")


if __name__ == "__main__":
    main()
