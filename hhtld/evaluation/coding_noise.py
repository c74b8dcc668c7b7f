"""What coding does to a model's weights, without coding them: noise of the size and shape that Slot T's errors have.

An error of a code is as good as normal noise: alike in all coded coordinates, and as large as the code's own on normal
numbers. Gains of least squares make what is decoded smaller by the error's share. Feedback turns the noise as it turns
errors, and rotation and column scale lead it back to the weights. A model takes some seconds at each level of rates,
where coding it takes minutes.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from hhtld import slots
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.slots.moments import Moments
from hhtld.slots.shared_parts import TrellisShared
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.rows import row_ranges

__all__ = ["CodingNoise", "distortion"]

_SAMPLE = (32, 1024)  # rows that a search takes at a time, of as many columns as its ends do not count


@functools.cache
def distortion(rate: int) -> float:
    """Return the mean squared error of profile parity's code at a rate, as a share of what is coded."""
    sample = np.random.default_rng(0).standard_normal(_SAMPLE).astype(np.float32)
    shared = TrellisShared(slots.Trellis.trained(rate), slots.Rotation(_SAMPLE[1], 0))
    coded = HhtlTTensor.encode_block("", sample, shared, None, None, 0, None)
    decoded = coded.reconstruct_rows()
    return float(np.square(decoded - sample).mean(dtype=np.float64) / np.square(sample).mean(dtype=np.float64))


class CodingNoise:
    """Noise upon a model's matrices, of one pattern and of any rates.

    Parameters
    ----------
    source : TensorSource
        Holds the weights as they are.
    column_scales : mapping of name to array (n_cols,)
    moments : mapping of name to Moments
    is_index : mapping of name to bool
    """

    def __init__(
        self,
        source: TensorSource,
        column_scales: Mapping[str, NDArray[np.float32]],
        moments: Mapping[str, Moments],
        is_index: Mapping[str, bool],
    ) -> None:
        self._source, self._column_scales, self._moments, self._is_index = source, column_scales, moments, is_index
        self._shares: dict[str, NDArray[np.float32]] = {}  # of the rows, that the errors of the last bits are
        self._turned: tuple[str, torch.Tensor | None] = "", None  # feedback of the matrix that was set last

    def put(self, name: str, matrix: torch.Tensor, bits: float | NDArray[np.float64]) -> None:
        """Set a matrix of the model, float32 (n_rows, n_cols), to the weights with the noise of its bits a weight.

        `bits` is one number or one for each row (n_rows,). If the matrix was set before, the pattern of the noise
        stays, and only its size changes.
        """
        rates, which = np.unique(np.rint(np.asarray(bits) * 16).astype(int), return_inverse=True)
        shares = np.array([distortion(rate) for rate in rates.tolist()])[which.ravel()].astype(np.float32)
        shares = np.broadcast_to(shares, len(matrix))
        before = self._shares.get(name)
        for start, stop in row_ranges(len(matrix), 4 * matrix.shape[1]):
            block = matrix[start:stop]
            weights = torch.from_numpy(SourceRows(self._source, name).read(start, stop))
            if before is None:
                noise = torch.from_numpy(self._unit_noise(name, start, weights.numpy()))
            else:
                kept, size = _kept_and_size(before[start:stop])
                noise = (block - kept * weights) / size
            kept, size = _kept_and_size(shares[start:stop])
            block.copy_(kept * weights + size * noise)
        self._shares[name] = shares

    def _unit_noise(self, name: str, start: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return noise for rows, as large as what is coded of them."""
        n_cols = weights.shape[1]
        scale = self._column_scales.get(name, np.ones(n_cols, np.float32))
        size = np.sqrt(np.square(weights * scale, dtype=np.float64).mean(axis=1, keepdims=True)).astype(np.float32)
        random = np.random.default_rng([zlib.crc32(name.encode()), start])
        noise = size * random.standard_normal(weights.shape, dtype=np.float32)
        rotation, feedback = slots.Rotation(n_cols, 0), self._feedback(name, scale)
        if feedback is not None:
            noise -= (torch.from_numpy(noise) @ feedback.T).numpy()
        rotation.unrotate(noise)
        unscaled: NDArray[np.float32] = noise / scale
        return unscaled

    def _feedback(self, name: str, scale: NDArray[np.float32]) -> torch.Tensor | None:
        if self._turned[0] != name:
            moments, feedback = self._moments.get(name), None
            if moments is not None:
                rotation = slots.Rotation(moments.n_cols, 0)
                feedback = torch.from_numpy(slots.feedback_matrix(moments, rotation, scale, self._is_index[name]))
            self._turned = name, feedback
        return self._turned[1]


def _kept_and_size(shares: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how much of a row is decoded and how large the noise upon it is, for errors of shares (n_rows,).

    What gains of least squares decode is orthogonal to its error: of w it keeps (1 - d) w, and both errors make d.
    """
    return torch.from_numpy(1 - shares)[:, None], torch.from_numpy(np.sqrt(shares * (1 - shares)))[:, None]
