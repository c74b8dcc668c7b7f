"""Noise that stands for coding, beside what coding does."""

from __future__ import annotations

import numpy as np
import pytest

import hhtld
from hhtld.slots.moments import Moments
from hhtld.sources.contract import ArraySource

torch = pytest.importorskip("torch")
NAME = "layers.0.mlp.up_proj.weight"


def test_noise_is_as_large_as_errors_of_codes_and_shaped_like_them() -> None:
    from hhtld.evaluation.coding_noise import CodingNoise

    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((256, 192)) * rng.uniform(0.2, 2, (256, 1))).astype(np.float32)
    inputs = rng.standard_normal((800, 8)) @ rng.standard_normal((8, 192)) + 0.3 * rng.standard_normal((800, 192))
    scale = np.exp2(rng.uniform(-1, 1, 192)).astype(np.float32)
    source, moments = ArraySource({NAME: weights}), Moments.of(inputs.T @ inputs / 800, 24)
    noise = CodingNoise(source, {NAME: scale}, {NAME: moments}, {NAME: False})
    noisy = torch.from_numpy(weights.copy())
    for rate in (48, 72, 60, 32):
        noise.put(NAME, noisy, rate / 16)
        asked = {NAME: rate / 16}
        pack = hhtld.encode(source, "parity", rates=asked, column_scales={NAME: scale}, moments={NAME: moments})
        errors = pack.get_tensor(NAME) - weights
        stood_for = noisy.numpy() - weights
        kept, simulated_kept = ((1 + (e * weights).sum() / np.square(weights).sum()) for e in (errors, stood_for))
        assert 1 - simulated_kept == pytest.approx(1 - kept, rel=0.1, abs=0.0025), (
            "gains of least squares make rows smaller"
        )
        for directions in (np.eye(192), inputs.T):  # errors of weights, and of what the layer gives
            coded, simulated = (np.square(e @ directions).sum() for e in (errors, stood_for))
            assert simulated == pytest.approx(coded, rel=0.12)


def test_rows_have_noise_of_their_own_bits() -> None:
    from hhtld.evaluation.coding_noise import CodingNoise, distortion

    weights = np.random.default_rng(0).standard_normal((400, 192)).astype(np.float32)
    noise = CodingNoise(ArraySource({NAME: weights}), {}, {}, {NAME: False})
    noisy = torch.from_numpy(weights.copy())
    for bits in (np.full(400, 2.5), np.linspace(3, 5, 400), 4.0, np.linspace(5, 3, 400)):
        noise.put(NAME, noisy, bits)
        errors = np.square(noisy.numpy() - weights).mean(axis=1) / np.square(weights).mean(axis=1)
        sizes = [distortion(round(16 * float(each))) for each in np.broadcast_to(bits, 400)]
        np.testing.assert_allclose(errors, sizes, rtol=0.6)
        assert errors.mean() == pytest.approx(np.mean(sizes), rel=0.03)


def test_noise_is_what_its_formula_says() -> None:
    """A twin in float64: normal numbers, as large as coded rows, moved by feedback, rotated back and unscaled."""
    import zlib

    from hhtld import slots
    from hhtld.evaluation.coding_noise import CodingNoise, distortion

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 96)).astype(np.float32)
    scale = np.exp2(rng.uniform(-1, 1, 96)).astype(np.float32)
    moments = Moments.of(np.diag(rng.uniform(0.1, 3, 96)) + 0.2, 24)
    noise = CodingNoise(ArraySource({NAME: weights}), {NAME: scale}, {NAME: moments}, {NAME: True})
    noisy = torch.zeros(40, 96)
    noise.put(NAME, noisy, 4.25)
    size = np.sqrt(np.square(weights.astype(np.float64) * scale).mean(1, keepdims=True))
    drawn = np.random.default_rng([zlib.crc32(NAME.encode()), 0]).standard_normal((40, 96), dtype=np.float32)
    rotation = slots.Rotation(96, 0)
    fed_back = slots.feedback_matrix(moments, rotation, scale, True).astype(np.float64)
    unrotated = np.eye(96, dtype=np.float32)
    rotation.unrotate(unrotated)
    coded = size * drawn - (size * drawn) @ fed_back.T
    share = distortion(68)
    expected = (1 - share) * weights + np.sqrt(share * (1 - share)) * (coded @ unrotated.astype(np.float64)) / scale
    np.testing.assert_allclose(noisy.numpy(), expected, rtol=1e-4, atol=1e-5)
