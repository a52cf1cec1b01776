"""One stored record (a serialised tf.train.Example) -> example dict, with pictures left encoded.

TFDS' own parser builds an array for every field and costs 0.1 ms a record, half as much as decoding a 256 px picture,
all of it under Python's lock. The schema uses few kinds of features, so they are read from the message directly.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

Reader = Callable[[Mapping], Any]


def readers(features: tfds.features.FeaturesDict, prefix: str = "") -> dict[str, Reader]:
    """One reader per field of a converted set; they can be pickled.

    Text -> str; class -> its name; picture -> encoded bytes; numbers -> NumPy array or scalar; a nested dict -> dict;
    a sequence of boxes -> {"bbox": float32 (n, 4), "label": list of n str}.
    Raises TypeError for a kind of feature that the schema does not have.
    """
    return {name: _reader(feature, prefix + name) for name, feature in sorted(features.items())}


def parse(record: bytes, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Reads the fields that `readers` names out of one stored record."""
    values = tf_example_pb2.Example.FromString(record).features.feature
    return {name: read(values) for name, read in readers.items()}


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
        case tfds.features.Tensor() if None not in feature.shape and not feature._encoded_to_bytes:
            return partial(_numbers, key, np.dtype(feature.np_dtype), tuple(feature.shape))
    raise TypeError(
        f"Field {key!r} of the converted set is {feature!r}, which the schema of converted sets does not have; "
        "convert the set again with python -m cxrjax.prepare."
    )


def _list_reader(feature: tfds.features.FeatureConnector, key: str) -> Reader:
    if isinstance(feature, tfds.features.Text):
        return partial(_texts, key)
    return partial(_numbers, key, np.dtype(feature.np_dtype), (-1, *feature.shape))


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
