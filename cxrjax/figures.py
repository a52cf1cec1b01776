"""Figures of a run: where it sees the words of a sentence, what it makes of patches, and its training curves.

    python -m cxrjax.figures --checkpoint WORKDIR --output DIR
    python -m cxrjax.figures --checkpoint WORKDIR --output DIR --set phantom [--at 0.4,0.6]
    python -m cxrjax.figures --checkpoint WORKDIR --output DIR --set phantom --sentence "small nodule in the left lung"
        [--image-id ID …] [--split test] [--step latest|best|N]

Without a set, DIR gets curves.svg: the loss, its terms, monitors, judges and rates over the steps.
With a set, per picture <image id>-patches.png, at the resolution of the set: the first three principal components of
the patches as colours, the cosine of all with the patch at --at (y,x from 0 to 1; by default the middle of the first
box, or of the picture), and the attention of each head of the last block, where [CLS] is the feature.
With a sentence, of a method with reports: <image id>.png, a panel per word and one for the sentence, the cosine of its
vector with that of each patch over the picture, with the boxes and masks of the set; and <image id>.json with the
numbers, and whether each map's peak lies in a box (the pointing game). Without --image-id it is the split's first
frontal picture with a box, or its first frontal picture where the set has no boxes.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import arrived, trained
from cxrjax.drawing import style
from cxrjax.evals import figures, patch_figures
from cxrjax.export import step_name
from cxrjax.input import converted_sets, crops, paired, record_index, source
from cxrjax.reporting import training_curves
from cxrjax.sizes import sides
from cxrjax.text import tokenizer
from cxrjax.text.folder_tokenizer import FolderTokenizer


def draw(
    checkpoint: str | Path,
    set_name: str,
    sentence: str,
    output: str | Path,
    image_ids: Sequence[str] = (),
    split: str = "test",
    step: int | str = "latest",
) -> list[Path]:
    """Writes the pictures and numbers of words, and returns the paths of the PNG files; see the module's docstring.

    image_ids: of any split; without them the one of `split` that the docstring names.
    Raises ValueError for a run without reports, an empty sentence, and an image id that the set does not have.
    """
    if not sentence.strip():
        raise ValueError("the sentence is empty; give --sentence, such as 'left pleural effusion'")
    model = trained.load(checkpoint, step)
    if model.method.joint is None:
        raise ValueError(
            f"{checkpoint} was trained with {model.config.method!r}, which reads no reports, so there is no word to "
            "look for; give a run of a method that does, such as convirt, or leave the sentence out"
        )
    spelling, px, sees, written = _tokenizer(model), model.method.image_px, model.method.sees, []
    for example, large, marks, path in _pictures(model, set_name, image_ids, split, Path(output), ""):
        picture = crops.fit_as(crops.decode(example["image"]), px, sees)
        maps = figures.look(model.method.joint, model.params, model.state, picture, sentence, spelling)
        about = {"checkpoint": str(checkpoint), "step": model.step, "method": model.config.method}
        about |= {"set": set_name, "image_id": example["image_id"], "sentence": sentence}
        style.write(path, figures.sheet(large, maps, marks))
        numbers = json.dumps(about | figures.record(maps, figures.marks(example, px, sees), px), indent=1)
        path.with_suffix(".json").write_text(numbers)
        written.append(path)
    return written


def draw_patches(
    checkpoint: str | Path,
    set_name: str,
    output: str | Path,
    image_ids: Sequence[str] = (),
    split: str = "test",
    step: int | str = "latest",
    at: tuple[float, float] | None = None,
) -> list[Path]:
    """Writes what the encoder makes of patches, and returns the paths; arguments as of `draw`, `at` as --at."""
    model, written = trained.load(checkpoint, step), []
    look = patch_figures.looker(model.method, model.params, model.state)
    for example, large, marks, path in _pictures(model, set_name, image_ids, split, Path(output), "-patches"):
        there = 0.5, 0.5
        if marks.boxes:
            y0, x0, y1, x1 = (at / large.shape[i % 2] for i, at in enumerate(marks.boxes[0][1]))
            there = (y0 + y1) / 2, (x0 + x1) / 2
        patches, heads = look(crops.fit_as(crops.decode(example["image"]), model.method.image_px, model.method.sees))
        style.write(path, patch_figures.sheet(large, patches, heads, marks, at or there))
        written.append(path)
    return written


def draw_curves(checkpoint: str | Path, output: str | Path) -> Path:
    """Writes curves.svg of the run; raises ValueError for one without records."""
    _, workdir, _ = trained.settings(checkpoint, "latest")
    path, text = Path(output) / "curves.svg", training_curves.svg(training_curves.read(workdir / "metrics.jsonl"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _pictures(
    model: trained.Trained, set_name: str, image_ids: Sequence[str], split: str, output: Path, kind: str
) -> Iterator[tuple[Any, np.ndarray, figures.Marks, Path]]:
    """Every example with what the model sees of it, at the stored resolution, its marks, and the path of its figure."""
    px, sees = sides(model.method.image_px), model.method.sees
    short = sees.removeprefix("image")
    for example in _examples(converted_sets.open_set(set_name), image_ids, split):
        image = crops.decode(example["image"])
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', example['image_id'])}{kind}.png"
        # As much larger as the picture is stored; at the model's own size where that is none.
        larger = max(1.0, min(old / side for old, side in zip(image.shape, px, strict=True)))
        size = [round(side * larger) for side in px]
        # "image256" of 224 px shows what "image512" of 448 px does.
        how = f"image{round(int(short) * larger)}" if short.isdigit() else sees
        yield example, crops.fit_as(image, size, how), figures.marks(example, size, how), path


def _tokenizer(model: trained.Trained) -> tokenizer.Tokenizer | FolderTokenizer:
    """The vocabulary that the run keeps, or else the one that its config names; of what others trained, their own."""
    if model.config.method == arrived.NAME:
        return FolderTokenizer(model.config.init_from, model.config.space.vocab_size)
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
    parser.add_argument("--output", required=True, help="folder for the figures")
    parser.add_argument("--set", help="converted set, or its path; without it the training curves are drawn")
    parser.add_argument("--sentence", help="whose words to look for; without it patches and heads are drawn")
    parser.add_argument("--at", type=_place, help="y,x from 0 to 1 of the patch that others are compared with")
    parser.add_argument("--image-id", nargs="+", default=(), help="pictures of the set; default: the first with a box")
    parser.add_argument("--split", default="test", help="where the default picture is taken from (default test)")
    parser.add_argument("--step", type=step_name, default="latest", help="latest (default), best, or a number")
    given = parser.parse_args(argv)
    chosen = given.image_id, given.split, given.step
    try:
        if given.set is None:
            if given.sentence is not None or given.at is not None or given.image_id:
                raise ValueError("--sentence, --at and --image-id are of pictures: give their --set, such as phantom")
            written = [draw_curves(given.checkpoint, given.output)]
        elif given.sentence is None:
            written = draw_patches(given.checkpoint, given.set, given.output, *chosen, given.at)
        else:
            written = draw(given.checkpoint, given.set, given.sentence, given.output, *chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"{path} and {path.with_suffix('.json').name}" if given.sentence else path)
    return 0


def _place(text: str) -> tuple[float, float]:
    """ "0.4,0.6" → (0.4, 0.6); raises ArgumentTypeError."""
    try:
        y, x = (float(part) for part in text.split(","))
    except ValueError:
        y = x = -1.0
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no place in a picture; give y,x from 0 to 1, such as 0.4,0.6")
    return y, x


if __name__ == "__main__":
    raise SystemExit(main())
