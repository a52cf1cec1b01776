"""First convolutions between grey pictures under one mean and deviation, and three channels each under its own.

Both sides scale a picture to x = pixel / 255. We feed z = (x - m) / s, their processor feeds z_c = (x_c - m_c) / s_c.
With x_c = x on a grey picture, and x = s z + m, their convolution at one place is

    sum_c sum_ij W_c[ij] (x[ij] - m_c) / s_c
      = [sum_c (m - m_c) / s_c * sum_ij W_c[ij]]  +  sum_ij [sum_c s / s_c * W_c[ij]] z[ij]

so the second bracket is our one-channel kernel and the first a constant.
"""

from collections.abc import Sequence

import numpy as np


def spread(kernel: np.ndarray) -> np.ndarray:
    """A grey kernel d 1 h w over three channels, d 3 h w, for pictures under the same mean and deviation on each.

    (t, t, k - 2 t) with t = k / 3 rounded to float32: equal thirds whose sum is k to the last bit, so that `fold`
    gives k back.
    """
    third = (kernel / np.float32(3)).astype(np.float32)
    return np.concatenate([third, third, kernel - 2 * third], axis=1)


def fold(
    kernel: np.ndarray,
    their_mean: Sequence[float],
    their_std: Sequence[float],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel d c h w under their normalisation, as one under ours, and the constant d that it leaves out.

    channels: of our encoder. 1 sums the kernels of theirs, for grey pictures. Their own number keeps them, for pictures
    that are repeated on each.
    mean, std: ours; as theirs, per channel, they leave the kernel as it is.
    Returns float64, so that what was spread comes back bit for bit once rounded.
    Raises ValueError for other channels, and for a normalisation of another number of channels than the kernel's.
    """
    given = kernel.shape[1]
    if not len(their_mean) == len(their_std) == given:
        raise ValueError(
            f"The pre-trained model takes {given} channel(s), but {len(their_mean)} mean(s) and {len(their_std)} "
            "deviation(s) are given; give one of each per channel."
        )
    if channels not in (1, given):
        raise ValueError(
            f"The pre-trained model takes {given} channel(s) and our encoder {channels}; a model is read with its own "
            "number of channels, or with their kernels summed to 1."
        )
    shift, scale = np.asarray(their_mean, np.float64), np.asarray(their_std, np.float64)
    wide = kernel.astype(np.float64)
    constant = np.einsum("dcij,c->d", wide, (np.asarray(mean) - shift) / scale)
    wide = wide * (np.asarray(std) / scale)[None, :, None, None]
    return wide.sum(axis=1, keepdims=True) if channels == 1 else wide, constant
