"""How near two recordings of one sentence are: level, zero crossings, duration, envelope, spectrum; numpy only.

A voice whose duration predictor changed a little says the same sounds a few milliseconds earlier or later. Envelopes
that are compared at equal times, or after the whole was stretched, would measure that shift over and over. So frames
are first paired by dynamic time warping: by their spectra in bands, not by the envelopes that are judged, and never
further apart than `REACH` once both recordings are stretched to one length, because warping without bounds makes any
two sentences alike. `shift_ms` says how much was warped, and `envelope_unaligned` is the score without any warping.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SpeechScores", "compare", "decibels", "envelope", "paired", "rms", "spectrogram", "zero_crossing_rate"]

Floats = NDArray[np.float64]

FRAME, HOP = 0.020, 0.010  # seconds
REACH = 0.15  # seconds; far below a syllable and its neighbour, which last 0.2 s each
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
        Pearson correlation of the RMS envelopes in 20 ms frames, each frame of the original with those paired to it.
    envelope_unaligned : float
        The same, with the decoded envelope stretched to the original's length and not warped.
    spectral_db : float
        Log-spectral distance: the root mean square over frequencies of the difference in dB, averaged over the
        frames in which somebody speaks.
    shift_ms : float
        Mean distance of paired frames, once both recordings are stretched to one length.
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
    """Return the root mean square of samples; 0 if there are none."""
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
    levels: Floats = np.sqrt(np.mean(frames * frames, axis=1))
    return levels


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
    levels: Floats = 10 * np.log10(np.maximum(power / top, 10 ** (floor / 10)))
    return levels


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
    if len(a) == 1:
        return np.zeros(len(b), np.intp), np.arange(len(b))
    lows, highs = _band(len(a), len(b), reach)
    totals = _path_costs(a, b, lows, highs)

    def total(i: int, j: int) -> float:
        return float(totals[i][j - lows[i]]) if i >= 0 and lows[i] <= j < highs[i] else np.inf

    path = [(len(a) - 1, len(b) - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))  # among equals the diagonal
        path.append(min(steps, key=lambda step: total(*step)))
    places = np.array(path[::-1], np.intp)
    return places[:, 0], places[:, 1]


def _band(n: int, m: int, reach: int) -> tuple[list[int], list[int]]:
    """Return the first place of `m`, and the one behind the last, that each of `n` places may be paired with."""
    slope = (m - 1) / max(1, n - 1)
    # A step of the line must not leave the band behind, or no path would lead through.
    reach = max(1, reach, int(np.ceil(slope)))
    lows = [max(0, int(np.floor(i * slope)) - reach) for i in range(n)]
    highs = [min(m, int(np.ceil(i * slope)) + reach + 1) for i in range(n)]
    lows[0], highs[-1] = 0, m
    return lows, highs


def _path_costs(a: Floats, b: Floats, lows: list[int], highs: list[int]) -> list[Floats]:
    """Return, for each row of `a`, the costs of the cheapest paths that end at each place of its band."""
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
    return totals


def _correlation(original: Floats, decoded: Floats) -> float:
    """Return Pearson's correlation; if one of them does not vary, whether both do not and the decoded one sounds."""
    spread, decoded_spread = float(original.std()), float(decoded.std())
    is_flat = spread <= 1e-3 * float(original.mean())
    is_decoded_flat = decoded_spread <= 1e-3 * float(decoded.mean())
    if is_flat or is_decoded_flat:
        return float(is_flat and is_decoded_flat and bool(decoded.any()))
    return float(np.mean((original - original.mean()) * (decoded - decoded.mean())) / (spread * decoded_spread))


def compare(original: ArrayLike, decoded: ArrayLike, rate: int) -> SpeechScores:
    """Return how near `decoded` is to `original`, both mono at `rate` samples a second.

    Raises
    ------
    ValueError
        If the original is silent, or one of them is not finite.
    """
    a, b = np.asarray(original, np.float64), np.asarray(decoded, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a recording holds samples that are not finite")
    level = rms(a)
    if not level:
        raise ValueError("the original is silent: there is nothing to be near to")
    envelope_a, envelope_b = envelope(a, rate), envelope(b, rate)
    power_a, power_b = spectrogram(a, rate), spectrogram(b, rate)
    places_a, places_b = _paired_frames(power_a, power_b, rate)
    n_frames = len(envelope_a)
    warped = np.bincount(places_a, envelope_b[places_b], n_frames) / np.bincount(places_a, minlength=n_frames)
    times = np.linspace(0, len(envelope_b) - 1, n_frames)
    stretched = np.interp(times, np.arange(len(envelope_b)), envelope_b)
    slope = (len(envelope_b) - 1) / max(1, n_frames - 1)
    peak = float(power_a.max())
    difference = decibels(power_a, peak)[places_a] - decibels(power_b, peak)[places_b]
    speaks = envelope_a[places_a] >= envelope_a.max() * 10 ** (SPEECH_DB / 20)
    return SpeechScores(
        rms=rms(b) / level - 1,
        zero_crossings=_crossings_ratio(a, b, rate) - 1,
        duration=b.size / a.size - 1,
        envelope=_correlation(envelope_a, warped),
        envelope_unaligned=_correlation(envelope_a, stretched),
        spectral_db=float(np.sqrt(np.mean(difference**2, axis=1))[speaks].mean()),
        shift_ms=float(np.abs(places_b - places_a * slope).mean() * HOP * 1000),
    )


def _crossings_ratio(a: Floats, b: Floats, rate: int) -> float:
    crossings, decoded = (zero_crossing_rate(wave, rate, DEAD_ZONE * rms(wave)) for wave in (a, b))
    if crossings:
        return decoded / crossings
    # A constant has no crossings; a decoded one that has some is then as far off as can be said.
    return 2.0 if decoded else 1.0


def _paired_frames(power_a: Floats, power_b: Floats, rate: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair frames by their bands, each below its recording's loudest: a gain, which `rms` tells, changes no pair."""
    bands_a, bands_b = _bands(power_a, rate), _bands(power_b, rate)
    levels_a = decibels(bands_a, float(bands_a.max()), BAND_FLOOR_DB)
    levels_b = decibels(bands_b, float(bands_b.max()) or 1.0, BAND_FLOOR_DB)
    return paired(levels_a, levels_b, round(REACH / HOP))
