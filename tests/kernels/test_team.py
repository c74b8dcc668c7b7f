"""team.h: every piece is done once, whoever is late, sleeps, stops or comes meanwhile."""

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hhtld._kernels import _score, _trellis
from hhtld._kernels._team import Team
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis


@contextlib.contextmanager
def serving(n_helpers: int) -> Iterator[Team]:
    """A team with its threads, which end with the block."""
    team = Team(n_helpers)
    threads = [threading.Thread(target=team.serve, args=(number,)) for number in range(n_helpers)]
    for thread in threads:
        thread.start()
    try:
        yield team
    finally:
        team.stop()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


class Product:
    """A product of many pieces, and what it must give."""

    def __init__(self, seed: int = 0, n_rows: int = 4000) -> None:
        rng, code = np.random.default_rng(seed), Trellis.trained(64)
        codes = rng.integers(0, 256, (n_rows, code.row_nbytes(128)), np.uint8)
        gains = rng.standard_normal(n_rows).astype(np.float32)
        matrix = (codes, code.levels, code.rate, gains, None, code.crossed, False)
        self.held = _score.TrellisProducts([matrix], n_rows, Rotation(128, 3).signs)
        self.inputs = rng.standard_normal((1, 128)).astype(np.float32)
        self.expected = np.empty((1, n_rows), np.float32)
        assert self.held.write(self.inputs, 1, self.expected)

    def check(self, team: Team) -> None:
        out = np.full_like(self.expected, np.nan)
        assert self.held.write(self.inputs, 1, out, team=team)
        np.testing.assert_array_equal(out, self.expected)


def test_every_piece_is_done_once_by_any_number_of_threads() -> None:
    product = Product()
    for n_helpers in (0, 1, 2, 7):
        with serving(n_helpers) as team:
            for _ in range(300):
                product.check(team)


def test_helpers_that_sleep_are_woken_and_those_that_never_come_are_not_missed() -> None:
    product = Product()
    product.check(Team(3))
    with serving(2) as team:
        for pause in (0, 1e-4, 2e-3, 5e-3) * 25:
            time.sleep(pause)
            product.check(team)


def test_callers_that_come_meanwhile_work_alone() -> None:
    products = [Product(seed, 500 * seed + 1) for seed in range(1, 5)]
    with serving(2) as team:
        errors: list[BaseException] = []

        def call(product: Product) -> None:
            try:
                for _ in range(200):
                    product.check(team)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call, args=(product,)) for product in products]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


def test_a_team_that_is_stopped_leaves_jobs_to_their_callers() -> None:
    product = Product()
    with serving(2) as team:
        product.check(team)
    product.check(team)
    team.serve(0)  # returns at once


def test_bad_numbers_are_named() -> None:
    for number in (-1, 1024):
        with pytest.raises(ValueError, match=rf"a team has 0\.\.1023 helpers, got {number}"):
            Team(number)
    for number in (-1, 2):
        with pytest.raises(ValueError, match=rf"helpers have the numbers 0\.\.1, got {number}"):
            Team(2).serve(number)


def test_decoded_rows_agree() -> None:
    """The product that the tests above share is that of the decoded rows."""
    product, code, rng = Product(n_rows=50), Trellis.trained(64), np.random.default_rng(0)
    codes = rng.integers(0, 256, (50, code.row_nbytes(128)), np.uint8)
    rows = np.empty((50, 128), np.float32)
    _trellis.decode(
        codes, code.levels, code.rate, rng.standard_normal(50).astype(np.float32), rows, crossed=code.crossed
    )
    Rotation(128, 3).unrotate(rows)
    exact = product.inputs.astype(np.float64) @ rows.T
    assert np.linalg.norm(product.expected - exact) < 2e-2 * np.linalg.norm(exact)
