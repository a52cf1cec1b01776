"""Settings of a config that a method refuses when it is made, before anything is traced or trained.

Every message gives the key, its value and what there is. Keys are dotted: "loss.form". A placeholder that is not set
passes.
"""

from collections.abc import Collection, Sequence
from typing import Any

from cxrjax.methods.base import Config


def one_of(config: Config, key: str, there: Collection[str]) -> None:
    """Raises ValueError unless the setting is one of these words."""
    if (value := _value(config, key)) not in there:
        words = [repr(word) for word in there]
        known = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
        raise ValueError(f"{key} must be {known}, got {value!r}")


def counts(config: Config, *keys: str, least: int = 1) -> None:
    """Raises ValueError unless every setting is a whole number from `least` on, or some of these."""
    for key in keys:
        numbers = _numbers(config, key)
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in numbers):
            raise ValueError(f"{key} must be a whole number from {least} on, got {_value(config, key)!r}")


def positive(config: Config, *keys: str) -> None:
    """Raises ValueError unless every setting is a number above 0."""
    for key in keys:
        if not all(isinstance(n, int | float) and n > 0 for n in _numbers(config, key)):
            raise ValueError(f"{key} must be a number above 0, got {_value(config, key)!r}")


def weights(config: Config, *keys: str) -> None:
    """Raises ValueError unless every setting is a number from 0 on."""
    for key in keys:
        if not all(isinstance(n, int | float) and n >= 0 for n in _numbers(config, key)):
            raise ValueError(f"{key} must be a number from 0 on, got {_value(config, key)!r}")


def shares(config: Config, *keys: str) -> None:
    """Raises ValueError unless every setting is a number from 0 to 1."""
    for key in keys:
        if not all(isinstance(n, int | float) and 0 <= n <= 1 for n in _numbers(config, key)):
            raise ValueError(f"{key} must be a number from 0 to 1, got {_value(config, key)!r}")


def slices(config: Config, *keys: str) -> None:
    """Raises ValueError unless every setting is a whole number that divides the batch."""
    counts(config, *keys)
    for key in keys:
        if config.batch_size % (parts := _value(config, key)):
            divisors = [str(n) for n in range(1, config.batch_size + 1) if config.batch_size % n == 0]
            raise ValueError(
                f"{key} = {parts} does not divide batch_size = {config.batch_size}; choose one of {', '.join(divisors)}"
            )


def _value(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _numbers(config: Config, key: str) -> Sequence[Any]:
    value = _value(config, key)
    if value is None:
        return (1,)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
