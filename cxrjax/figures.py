"""Show where on a radiograph a model that was trained with reports sees the words of a sentence.

    python -m cxrjax.figures --checkpoint WORKDIR --set phantom --sentence "small nodule in the left upper lobe"
        --output DIR [--image-id ID …] [--split test] [--step latest|best|N]

Per picture, DIR gets <image id>.png: one panel per word and one for the sentence, the cosine of its vector with that of
each patch over the picture, with the boxes and masks of the set; and <image id>.json with the numbers, and whether each
map's peak lies in a box (the pointing game). Without --image-id it is the split's first frontal picture with a box, or
its first frontal picture where the set has no boxes.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from cxrjax import trained
from cxrjax.evals import figures
from cxrjax.export import step_name
from cxrjax.input import converted_sets, crops, paired, record_index, source
from cxrjax.text import tokenizer


def draw(
    checkpoint: str | Path,
    set_name: str,
    sentence: str,
    output: str | Path,
    image_ids: Sequence[str] = (),
    split: str = "test",
    step: int | str = "latest",
) -> list[Path]:
    """Writes the pictures and numbers, and returns the paths of the PNG files; see the module's docstring.

    image_ids: of any split; without them the one of `split` that the docstring names.
    Raises ValueError for a run without reports, an empty sentence, and an image id that the set does not have.
    """
    if not sentence.strip():
        raise ValueError("the sentence is empty; give --sentence, such as 'left pleural effusion'")
    model = trained.load(checkpoint, step)
    if model.method.joint is None:
        raise ValueError(
            f"{checkpoint} was trained with {model.config.method!r}, which reads no reports, so there is no word to "
            "look for; give a run of a method that does, such as convirt"
        )
    spelling, px = _tokenizer(model), model.method.image_px
    output, written = Path(output), []
    for example in _examples(converted_sets.open_set(set_name), image_ids, split):
        picture = crops.fit(crops.decode(example["image"]), px)
        maps = figures.look(model.method.joint, model.params, model.state, picture, sentence, spelling)
        marks = figures.marks(example, px)
        about = {"checkpoint": str(checkpoint), "step": model.step, "method": model.config.method}
        about |= {"set": set_name, "image_id": example["image_id"], "sentence": sentence}
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', example['image_id'])}.png"
        path.write_bytes(cv2.imencode(".png", figures.sheet(picture, maps, marks))[1].tobytes())
        numbers = json.dumps(about | figures.record(maps, marks, px), indent=1)
        path.with_suffix(".json").write_text(numbers)
        written.append(path)
    return written


def _tokenizer(model: trained.Trained) -> tokenizer.Tokenizer:
    """The vocabulary that the run keeps, or else the one that its config names."""
    if (model.workdir / tokenizer.VOCABULARY).is_file():
        return tokenizer.load(model.workdir)
    return paired.StudyReader(model.config).tokenizer


def _examples(converted_set: converted_sets.ConvertedSet, image_ids: Sequence[str], split: str) -> list[Any]:
    if not image_ids:
        frontals = source.select(converted_set, split, projections=("PA", "AP"))
        every = (frontals[item] for item in range(len(frontals)))
        return [next((example for example in every if "boxes" in example and example["boxes"]["label"]), frontals[0])]
    of_split = {
        name: record_index.index(converted_set, name)["image_id"] for name, n in converted_set.split_sizes.items() if n
    }
    found = []
    for image_id in image_ids:
        holds = next((name for name, ids in of_split.items() if image_id in set(ids)), None)
        if holds is None:
            every = [known for ids in of_split.values() for known in ids]
            near = difflib.get_close_matches(image_id, every, n=1) or every[:1]
            raise ValueError(
                f"set {converted_set.name!r} has no picture {image_id!r} among its {len(every)}; one is {near[0]!r}"
            )
        found.append(source.select(converted_set, holds, image_ids=[image_id])[0])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="workdir, its checkpoints folder, or one step's folder")
    parser.add_argument("--set", required=True, help="converted set, or its path")
    parser.add_argument("--sentence", required=True, help="whose words to look for")
    parser.add_argument("--output", required=True, help="folder for the pictures and numbers")
    parser.add_argument("--image-id", nargs="+", default=(), help="pictures of the set; default: the first with a box")
    parser.add_argument("--split", default="test", help="where the default picture is taken from (default test)")
    parser.add_argument("--step", type=step_name, default="latest", help="latest (default), best, or a number")
    given = parser.parse_args(argv)
    try:
        written = draw(
            given.checkpoint, given.set, given.sentence, given.output, given.image_id, given.split, given.step
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"{path} and {path.with_suffix('.json').name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
