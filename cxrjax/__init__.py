"""cxrjax: pre-training and honest evaluation of chest X-ray encoders in JAX.

Axis letters, in comments, docstrings and einops strings everywhere:

    b batch    v views    h w pixels    p q patch grid    n tokens    l text tokens
    d width    k prototypes or neighbours    c classes

    encoder = cxrjax.load("runs/x")              a trained encoder
    vectors = encoder.embed(images)              files, DICOM datasets, arrays → b d
    encoder = cxrjax.pretrain("spcl", sets=cxrjax.make_set("mine", images), steps=1000)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cxrjax.datasets.in_memory import make_set
    from cxrjax.encoder import Encoder, load
    from cxrjax.library import pretrain

__all__ = ["Encoder", "__version__", "load", "make_set", "pretrain"]

_PLACES = {"Encoder": "encoder", "load": "encoder", "make_set": "datasets.in_memory", "pretrain": "library"}


def __getattr__(name: str) -> Any:
    """What the library offers is imported when it is asked for, so that `import cxrjax` takes no time."""
    if name in _PLACES:
        return getattr(import_module(f"cxrjax.{_PLACES[name]}"), name)
    if name == "config":
        return import_module("cxrjax.config")
    raise AttributeError(f"cxrjax has no {name!r}; it offers {', '.join(sorted([*_PLACES, 'config']))}")
