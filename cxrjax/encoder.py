"""A trained encoder in Python: pictures in, vectors out.

encoder = cxrjax.load("runs/x")
vectors = encoder.embed(["a.dcm", "b.png"])                        # b d
patches = encoder.embed(array, patches=True)                       # b p q d
looked = encoder.attention(array)                                  # b p q, of [CLS] in the last block
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import arrived, parallel, sizes, trained
from cxrjax.evals import encoders
from cxrjax.imaging import arrays
from cxrjax.input import crops

THREADS = 4  # that read pictures


def load(directory: str | Path, step: int | str = "latest") -> "Encoder":
    """The encoder of a run, or one that others trained.

    directory: a workdir, its checkpoints folder or one step's folder, or a Hugging Face folder. step: number, "latest"
    or "best".
    Raises CheckpointNotFound, CheckpointMismatch, and ValueError where the run's config.json is gone.
    """
    return Encoder(trained.load(directory, step))


class Encoder:
    """A trained encoder. trained: its config, method and parameters. px: size of the pictures that it sees, a
    number for squares, else (height, width)."""

    def __init__(self, model: trained.Trained):
        self.trained, self.px = model, sizes.plain(model.method.image_px)
        self._mesh = parallel.make_mesh()
        name = arrived.name(model.config)
        self._encoder = encoders.from_method(
            model.method, model.params, model.state, name=name, mesh=self._mesh, content=model.digest, attention=True
        )

    def __repr__(self) -> str:
        found = self.trained
        what = f"{found.config.method}, step {found.step} of {found.workdir}"
        if found.config.method == arrived.NAME:
            what = f"{found.config.model.variant} from {found.config.init_from}"
        return f"<cxrjax.Encoder: {what}, sees {sizes.said(self.px)} px>"

    def embed(
        self, images: Any, *, patches: bool = False, value_range: arrays.Range | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """Vectors b d of pictures, float32; with patches=True those of their patches, b p q d.

        images: a path, a DICOM dataset, an array h w or b h w, or a list of these. Arrays are uint8 or uint16, or any
        numbers with value_range. Each picture is fitted to the encoder's size: short side first, then the middle.
        value_range: the values that become black and white; without it uint16 is taken by its own robust range.
        Raises ValueError naming the picture and the reason; an empty batch and colour are refused too.
        """
        kind = "patches" if patches else "pooled"
        return self._of(images, value_range, batch_size, lambda batch: self._encoder.encode(batch)[kind])

    def features(
        self, pictures: Sequence[np.ndarray], size: int, kinds: Sequence[str] = ("pooled",)
    ) -> dict[str, np.ndarray]:
        """What at most `size` pictures, uint8 h w, give: "pooled" b d, "patches" b p q d, "attention" b p q.

        For one size only one program is compiled. Raises ValueError as `attention` does.
        """

        def of(batch: Any) -> dict[str, Any]:
            found = {**self._encoder.encode(batch)}
            if "attention" in kinds:
                found["attention"] = self._attends(batch)
            return {kind: found[kind] for kind in kinds}

        return self._run(pictures, size, of)

    def attention(self, images: Any, *, value_range: arrays.Range | None = None, batch_size: int = 64) -> np.ndarray:
        """How much [CLS] attends to each patch in the last block, mean over the heads: b p q, which sum to at most 1.

        Arguments as of `embed`. Raises ValueError for an encoder whose vector is no [CLS] of a Vision Transformer.
        """
        return self._of(images, value_range, batch_size, self._attends)

    def _attends(self, batch: Any) -> Any:
        found = self._encoder.attention(batch) if self._encoder.attention is not None else None
        if found is None:
            raise ValueError(
                f"{self!r} has no map of attention: its vector is no [CLS] of a ViT. Ask for patches: "
                "embed(images, patches=True), or --patches of python -m cxrjax.embed"
            )
        return found

    def _run(self, pictures: Sequence[np.ndarray], size: int, of: Callable[[Any], Any]) -> Any:
        """What `of` finds on a batch of `size` pictures, filled up with black; without the black ones."""
        size = -(-size // parallel.num_devices(self._mesh)) * parallel.num_devices(self._mesh)
        batch = np.zeros((size, *sizes.sides(self.px), 1), np.uint8)
        for row, picture in enumerate(pictures):
            batch[row, :, :, 0] = crops.fit_as(picture, self.px, self._encoder.sees)
        found = of(parallel.to_global(batch, self._mesh))
        return jax.tree.map(lambda array: np.asarray(array, np.float32)[: len(pictures)], found)

    def _of(self, images: Any, value_range: arrays.Range | None, batch_size: int, of: Callable[[Any], Any]) -> Any:
        given = arrays.separate(images)
        size = min(batch_size, 1 << (len(given) - 1).bit_length())  # few sizes, so that little is compiled
        parts = [self._run(pictures, size, of) for pictures in _read(given, value_range, size)]
        return np.concatenate(parts)


def _read(given: Sequence[Any], value_range: arrays.Range | None, size: int) -> Iterator[list[np.ndarray]]:
    """Batches of pictures as uint8 h w."""

    def read(number: int) -> np.ndarray:
        try:
            return arrays.grey(given[number], value_range)
        except ValueError as error:
            name = f" ({given[number]})" if isinstance(given[number], str | Path) else ""
            raise ValueError(f"picture {number}{name}: {error}") from None

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(given), size):
            yield list(pool.map(read, range(start, min(start + size, len(given)))))
