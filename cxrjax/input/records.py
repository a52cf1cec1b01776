"""One stored record (a serialised tf.train.Example) as a mapping of fields, with pictures left encoded.

TFDS' own parser builds every field of a record as an array and costs 0.1 ms, a third of decoding a 256 px picture and
all of it under Python's lock. The schema uses few kinds of features, so they are read from the message directly, each
when it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

Reader = Callable[[Mapping], Any]
_EXAMPLE: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it on import)


def readers(features: tfds.features.FeaturesDict, prefix: str = "") -> dict[str, Reader]:
    """One reader per field of a converted set; they can be pickled.

    Text -> str; class -> its name; picture -> encoded bytes; numbers -> NumPy array or scalar; a nested dict -> dict;
    a sequence of boxes -> {"bbox": float32 (n, 4), "label": list of n str}.
    Raises TypeError for a kind of feature that the schema does not have.
    """
    return {name: _reader(feature, prefix + name) for name, feature in sorted(features.items())}


class Example(Mapping):
    """The fields of one record, each read when it is asked for, and `set`, the name of its set.

    Like a dict that cannot be changed; `dict(example)` reads every field.
    """

    __slots__ = ("_readers", "_set_name", "_values")

    def __init__(self, record: bytes, readers: Mapping[str, Reader], set_name: str):
        self._values = _EXAMPLE.FromString(record).features.feature
        self._readers = readers
        self._set_name = set_name

    def __getitem__(self, name: str) -> Any:
        read = self._readers.get(name)
        if read is not None:
            return read(self._values)
        if name == "set":
            return self._set_name
        raise KeyError(f"Set {self._set_name!r} has no field {name!r}; its records have {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        yield from self._readers
        yield "set"

    def __len__(self) -> int:
        return len(self._readers) + 1


def _reader(feature: tfds.features.FeatureConnector, key: str) -> Reader:
    match feature:
        case tfds.features.Text():
            return partial(_text, key)
        case tfds.features.Image():
            return partial(_encoded, key)
        case tfds.features.ClassLabel():
            return partial(_class_name, key, tuple(feature.names))
        case tfds.features.FeaturesDict():
            return partial(_nested, readers(feature, f"{key}/"))
        case tfds.features.Sequence(feature=tfds.features.FeaturesDict() as inner):
            return partial(_nested, {name: _list_reader(item, f"{key}/{name}") for name, item in inner.items()})
        case tfds.features.Tensor() if _is_plain(feature):
            return partial(_numbers, key, *_kind(feature))
    raise TypeError(
        f"Field {key!r} of the converted set is {feature!r}, which the schema of converted sets does not have; "
        "convert the set again with python -m cxrjax.prepare."
    )


def _list_reader(feature: tfds.features.FeatureConnector, key: str) -> Reader:
    if isinstance(feature, tfds.features.Text):
        return partial(_texts, key)
    dtype, shape = _kind(feature)
    return partial(_numbers, key, dtype, (-1, *shape))


def _is_plain(feature: Any) -> bool:
    """Whether a tensor is stored as its numbers, and always of one shape."""
    return None not in feature.shape and not feature._encoded_to_bytes


def _kind(feature: Any) -> tuple[np.dtype, tuple[int, ...]]:
    return np.dtype(feature.np_dtype), tuple(feature.shape)


def _text(key: str, values: Mapping) -> str:
    return values[key].bytes_list.value[0].decode()


def _texts(key: str, values: Mapping) -> list[str]:
    return [value.decode() for value in values[key].bytes_list.value]


def _encoded(key: str, values: Mapping) -> bytes:
    return values[key].bytes_list.value[0]


def _class_name(key: str, names: tuple[str, ...], values: Mapping) -> str:
    return names[values[key].int64_list.value[0]]


def _numbers(key: str, dtype: np.dtype, shape: tuple[int, ...], values: Mapping) -> np.ndarray | np.generic:
    stored = values[key]
    numbers = (stored.float_list if dtype.kind == "f" else stored.int64_list).value
    return np.array(numbers, dtype).reshape(shape)[()]


def _nested(readers: Mapping[str, Reader], values: Mapping) -> dict[str, Any]:
    return {name: read(values) for name, read in readers.items()}
