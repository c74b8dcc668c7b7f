"""How near two recordings of one sentence are: level, zero crossings, duration, envelope, spectrum; numpy only.

A voice whose duration predictor changed a little says the same sounds a few milliseconds earlier or later. Envelopes
compared at equal times, or after stretching the whole, would then measure that shift over and over; so frames are
first paired by dynamic time warping. It pairs by the spectra in bands, not by the envelopes that are judged, and
pairs nothing further apart than `REACH` once both are stretched to one length: warping without bounds makes any two
sentences alike. What was warped away is told: `shift_ms`, and `envelope_unaligned` without any warping.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SpeechScores", "compare", "decibels", "envelope", "paired", "rms", "spectrogram", "zero_crossing_rate"]

Floats = NDArray[np.float64]

FRAME, HOP = 0.020, 0.010  # seconds
REACH = 0.15  # seconds; far below a syllable and its neighbour, which last .2 s each
DEAD_ZONE = 0.01  # of a recording's own RMS: what crosses zero below it is the silence between words
BAND_FLOOR_DB = -60.0  # below a recording's loudest band; frames are paired by what stands above it
FLOOR_DB = -80.0  # below the original's strongest frequency; single frequencies lie lower than bands
SPEECH_DB = -40.0  # frames further below the loudest are pauses
_WINDOW = 0.046  # seconds of one spectrum: 1,024 samples at 22,050 Hz
_N_BANDS = 24


@dataclass(frozen=True)
class SpeechScores:
    """A decoded recording beside the original.

    Attributes
    ----------
    rms, zero_crossings, duration : float
        Relative differences, decoded over original less 1.
    envelope : float
        Pearson correlation of the RMS envelopes in 20 ms frames, each frame of the original with what is paired to it.
    envelope_unaligned : float
        The same with the decoded envelope stretched to the original's length and not warped.
    spectral_db : float
        Log-spectral distance: the root mean square over frequencies of the difference in dB, meaned over the
        frames that speak.
    shift_ms : float
        Mean distance of paired frames, once both are stretched to one length.
    """

    rms: float
    zero_crossings: float
    duration: float
    envelope: float
    envelope_unaligned: float
    spectral_db: float
    shift_ms: float

    def to_json(self) -> dict[str, float]:
        """Return every number."""
        return asdict(self)


def rms(samples: ArrayLike) -> float:
    """Return the root mean square, 0 for nothing."""
    wave = np.asarray(samples, np.float64)
    return float(np.sqrt(np.mean(wave * wave))) if wave.size else 0.0


def zero_crossing_rate(samples: ArrayLike, rate: int, dead_zone: float = 0.0) -> float:
    """Return sign changes a second among the samples beyond +- `dead_zone`; zeros have no sign."""
    wave = np.asarray(samples, np.float64)
    positive = wave[np.abs(wave) > dead_zone] > 0
    return float(np.count_nonzero(positive[1:] != positive[:-1]) * rate / wave.size) if wave.size else 0.0


def envelope(samples: ArrayLike, rate: int) -> Floats:
    """Return the RMS of 20 ms frames, every 10 ms; at least one frame."""
    frames = _frames(samples, round(FRAME * rate), round(HOP * rate))
    found: Floats = np.sqrt(np.mean(frames * frames, axis=1))
    return found


def spectrogram(samples: ArrayLike, rate: int) -> Floats:
    """Return power by time and frequency, (n_frames, n_bins), from windows centred on the envelope's frames."""
    width, frame = round(_WINDOW * rate), round(FRAME * rate)
    around = max(0, width - frame)
    wave = np.pad(np.asarray(samples, np.float64), (around // 2, around - around // 2))
    window = np.hanning(width + 2)[1:-1]
    power: Floats = np.abs(np.fft.rfft(_frames(wave, width, round(HOP * rate)) * window)) ** 2
    return power


def _frames(samples: ArrayLike, width: int, hop: int) -> Floats:
    wave = np.asarray(samples, np.float64)
    if wave.size < width:
        wave = np.pad(wave, (0, width - wave.size))
    return np.lib.stride_tricks.sliding_window_view(wave, width)[::hop]


def decibels(power: Floats, top: float, floor: float = FLOOR_DB) -> Floats:
    """Return powers in dB below `top`, not further below it than `floor`."""
    found: Floats = 10 * np.log10(np.maximum(power / top, 10 ** (floor / 10)))
    return found


def _bands(power: Floats, rate: int) -> Floats:
    """Return the power in bands as wide as hearing's: evenly spaced in mel."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), _N_BANDS + 1)
    edges = (700 * (10 ** (mel / 2595) - 1) / (rate / 2) * (power.shape[1] - 1)).astype(np.intp)
    edges = np.maximum(edges[:-1], np.arange(_N_BANDS))  # narrow bands still need a bin of their own
    return np.add.reduceat(power, np.minimum(edges, power.shape[1] - 1), axis=1)


def paired(original: ArrayLike, decoded: ArrayLike, reach: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair two sequences of vectors by dynamic time warping: first with first, last with last, order kept.

    Parameters
    ----------
    original, decoded : float (n, k) and (m, k)
    reach : int
        How far from the straight line between the corners a pair may lie, in places of `decoded`.

    Returns
    -------
    tuple of int arrays
        Places in both, of one length; every place of each occurs.
    """
    a, b = np.asarray(original, np.float64), np.asarray(decoded, np.float64)
    n, m = len(a), len(b)
    slope = (m - 1) / max(1, n - 1)
    # A step of the line must not leave the band behind, or no path would lead through.
    reach = max(1, reach, int(np.ceil(slope)))
    lows = [max(0, int(np.floor(i * slope)) - reach) for i in range(n)]
    highs = [min(m, int(np.ceil(i * slope)) + reach + 1) for i in range(n)]
    lows[0], highs[-1] = 0, m
    if n == 1:
        return np.zeros(m, np.intp), np.arange(m)
    totals: list[Floats] = []
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        costs = np.linalg.norm(b[low:high] - a[i], axis=1)
        # From the row above, straight or diagonally; then along the row, where the best start of a run
        # is a running minimum.
        entered = np.full(high - low, np.inf)
        if i == 0:
            entered[0] = 0.0
        else:
            above = np.full(high - low + 1, np.inf)  # places low - 1 .. high - 1
            first, last = max(low - 1, lows[i - 1]), min(high, highs[i - 1])
            above[first - low + 1 : last - low + 1] = totals[-1][first - lows[i - 1] : last - lows[i - 1]]
            entered = np.minimum(above[:-1], above[1:])
        run = np.cumsum(costs)
        totals.append(run + np.minimum.accumulate(entered - (run - costs)))

    def total(i: int, j: int) -> float:
        return float(totals[i][j - lows[i]]) if i >= 0 and lows[i] <= j < highs[i] else np.inf

    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))  # among equals the diagonal
        path.append(min(steps, key=lambda step: total(*step)))
    places = np.array(path[::-1], np.intp)
    return places[:, 0], places[:, 1]


def _correlation(original: Floats, decoded: Floats) -> float:
    """Pearson's; where the original does not vary, whether the other does not either."""
    spread, other = float(original.std()), float(decoded.std())
    flat, still = spread <= 1e-3 * float(original.mean()), other <= 1e-3 * float(decoded.mean())
    if flat or still:
        return float(flat and still and bool(decoded.any()))
    return float(np.mean((original - original.mean()) * (decoded - decoded.mean())) / (spread * other))


def compare(original: ArrayLike, decoded: ArrayLike, rate: int) -> SpeechScores:
    """Return how near `decoded` is to `original`, both mono at `rate` samples a second.

    Raises
    ------
    ValueError
        When the original is silent or one of them is not finite.
    """
    a, b = np.asarray(original, np.float64), np.asarray(decoded, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a recording holds samples that are not finite")
    level = rms(a)
    if not level:
        raise ValueError("the original is silent: there is nothing to be near to")
    crossings = zero_crossing_rate(a, rate, DEAD_ZONE * level)
    # A constant has no crossings; a decoded one that has some is then as far off as can be told.
    found = zero_crossing_rate(b, rate, DEAD_ZONE * rms(b))
    ratio = found / crossings if crossings else float(found == 0) or 2.0

    loud, power = envelope(a, rate), spectrogram(a, rate)
    other, heard = envelope(b, rate), spectrogram(b, rate)
    # Each below its own loudest band: pairs must not depend on a gain, which is the level's to tell.
    bands, bands_heard = (_bands(found, rate) for found in (power, heard))
    tops = float(bands.max()), float(bands_heard.max()) or 1.0
    here, there = paired(
        decibels(bands, tops[0], BAND_FLOOR_DB), decibels(bands_heard, tops[1], BAND_FLOOR_DB), round(REACH / HOP)
    )
    counts = np.bincount(here, minlength=len(loud))
    along = np.bincount(here, other[there], len(loud)) / counts
    stretched = np.interp(np.linspace(0, len(other) - 1, len(loud)), np.arange(len(other)), other)
    slope = (len(other) - 1) / max(1, len(loud) - 1)

    peak = float(power.max())
    difference = decibels(power, peak)[here] - decibels(heard, peak)[there]
    speaks = loud[here] >= loud.max() * 10 ** (SPEECH_DB / 20)
    return SpeechScores(
        rms=rms(b) / level - 1,
        zero_crossings=ratio - 1,
        duration=b.size / a.size - 1,
        envelope=_correlation(loud, along),
        envelope_unaligned=_correlation(loud, stretched),
        spectral_db=float(np.sqrt(np.mean(difference**2, axis=1))[speaks].mean()),
        shift_ms=float(np.abs(there - here * slope).mean() * HOP * 1000),
    )
