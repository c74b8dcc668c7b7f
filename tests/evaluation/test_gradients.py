"""What gradients tell, beside sums that are computed position by position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


class Small(torch.nn.Module):
    """A table, a layer, a layer with its weights transposed, a bare matrix and a head."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(11, 6)
        self.layer = torch.nn.Linear(6, 5)
        self.other = Conv1D(4, 5)
        self.bare = torch.nn.Parameter(torch.randn(4, 3))
        self.head = torch.nn.Linear(3, 11)

    def forward(self, ids):
        return self.head(torch.tanh(self.other(torch.tanh(self.layer(self.table(ids))))) @ self.bare)


TEXTS = torch.tensor([[1, 2, 3, 4], [5, 1, 1, 9], [0, 3, 3, 7]])
NAMES = {"table": False, "layer": False, "other": False, "bare": False, "head": True}


def seen_of(model: Small):
    from hhtld.evaluation.gradients import watched

    parameters = {name: getattr(getattr(model, name), "weight", getattr(model, name)) for name in NAMES}
    with watched(model, parameters, NAMES, {"layer", "head"}) as (seen, backwards):
        for ids in TEXTS:
            backwards(model(ids).square().sum())
    return seen, parameters


def by_position(model: Small, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of a layer and the gradients of its outputs, of all positions."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    module = getattr(model, name)

    def forward(_, args, output):
        output.register_hook(lambda g: kept.append((args[0].detach().numpy(), g.numpy())))

    model.requires_grad_(True)
    handle = module.register_forward_hook(forward)
    for ids in TEXTS:
        model(ids).square().sum().backward()
    handle.remove()
    return np.concatenate([x for x, _ in kept]), np.concatenate([g for _, g in kept])


def test_sums_are_those_of_positions() -> None:
    model = Small()
    seen, _ = seen_of(model)
    for name in ("layer", "head", "other"):
        x, g = by_position(model, name)
        if name == "other":  # its rows are inputs
            x, g = g, x
        np.testing.assert_allclose(seen[name].inputs, (x**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(seen[name].weighted_inputs, ((g**2).sum(1)[:, None] * x**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(seen[name].outputs, ((x**2).sum(1)[:, None] * g**2).sum(0), rtol=1e-5)
    x, g = by_position(model, "layer")
    np.testing.assert_allclose(seen["layer"].products, (x * (g**2).sum(1)[:, None]).T @ x, rtol=1e-4)
    x, _ = by_position(model, "head")
    np.testing.assert_allclose(seen["head"].products, x.T @ x, rtol=1e-4)
    assert seen["other"].products is None
    assert seen["table"].looked_up is not None
    assert seen["bare"].squared is not None
    assert seen["bare"].squared.shape == (4, 3)


def differences(loss: Callable[[], float], weight: torch.Tensor, step: float = 1e-6) -> np.ndarray:
    """Return the gradient of a loss by central differences, of a matrix in float64."""
    gradient = np.zeros(weight.shape)
    for place in np.ndindex(*weight.shape):
        before = weight.data[place].item()
        weight.data[place] = before + step
        above = loss()
        weight.data[place] = before - step
        gradient[place] = (above - loss()) / (2 * step)
        weight.data[place] = before
    return gradient


def test_gradients_are_those_of_finite_differences() -> None:
    """Of texts of one token, whose gradients of weights are products of one input and one gradient."""
    from hhtld.evaluation.gradients import watched

    model = Small().double()
    parameters = {name: getattr(getattr(model, name), "weight", getattr(model, name)) for name in NAMES}
    texts = [torch.tensor([token]) for token in (1, 4, 7)]
    with watched(model, parameters, NAMES, set()) as (seen, backwards):
        for ids in texts:
            backwards(model(ids).square().sum())
    squares = {name: np.zeros(weight.shape) for name, weight in parameters.items()}
    with torch.no_grad():
        for ids in texts:
            for name, weight in parameters.items():
                squares[name] += differences(lambda ids=ids: float(model(ids).square().sum()), weight) ** 2
    for name, axis in (("layer", 1), ("head", 1), ("other", 1)):
        np.testing.assert_allclose(seen[name].outputs, squares[name].sum(axis), rtol=1e-5)
        np.testing.assert_allclose(seen[name].weighted_inputs, squares[name].sum(0), rtol=1e-5)
    np.testing.assert_allclose(seen["table"].looked_up, squares["table"].sum(0), rtol=1e-5)
    np.testing.assert_allclose(seen["bare"].squared, squares["bare"], rtol=1e-5)


def test_what_no_answer_depends_on_costs_nothing() -> None:
    from hhtld.evaluation.gradients import row_costs, watched

    model = Small()
    model.unused = torch.nn.Linear(2, 3)
    model.spare = torch.nn.Parameter(torch.ones(2, 3))
    parameters = {"unused": model.unused.weight, "spare": model.spare, "layer": model.layer.weight}
    with watched(model, parameters, dict.fromkeys(parameters, False), {"unused"}) as (seen, backwards):
        model.unused(torch.ones(1, 2))  # before anything has a gradient
        backwards(model(TEXTS[0]).square().sum())  # its table is not among those that are watched
    for name in ("unused", "spare"):
        assert not row_costs(name, seen[name], parameters[name].detach(), None).any()
    assert row_costs("layer", seen["layer"], model.layer.weight.detach(), None).all()


def test_the_direction_of_an_embedding_is_drawn_by_a_seed_and_its_length_does_not_count() -> None:
    from hhtld.evaluation.gradients import embedding_loss

    states = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    loss = float(embedding_loss(states, torch.Generator().manual_seed(0)))
    mean = states.mean(0).numpy()
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0)).numpy()
    assert loss == pytest.approx(float(mean @ direction / np.linalg.norm(mean)), rel=1e-5)
    assert float(embedding_loss(7 * states, torch.Generator().manual_seed(0))) == pytest.approx(loss, rel=1e-5)


def test_costs_are_what_noise_costs() -> None:
    from hhtld.evaluation.gradients import row_costs

    model, rng = Small(), np.random.default_rng(0)
    seen, parameters = seen_of(model)
    x, g = by_position(model, "layer")
    weight = parameters["layer"].detach()
    scale = rng.uniform(0.5, 2, 6).astype(np.float32)
    costs = row_costs("layer", seen["layer"], weight, scale)
    energy = np.square(weight.numpy() * scale).mean(1)
    for row in range(5):
        noise = rng.standard_normal((20000, 6)) * np.sqrt(energy[row]) / scale
        lost = np.square((noise @ x.T) * g[:, row]).sum(1).mean()
        # The costs take the inputs of all rows to be weighted alike; one row may differ by some.
        assert 0.4 < 6 * costs[row] / lost < 2.5
    noise = rng.standard_normal((4000, 5, 6)) * np.sqrt(energy)[:, None] / scale
    lost = np.square(np.einsum("nij,pj->npi", noise, x) * g).sum((1, 2)).mean()
    assert 6 * costs.sum() == pytest.approx(lost, rel=0.25)


def test_answers_are_drawn_from_the_model_by_a_seed() -> None:
    from hhtld.evaluation.gradients import answers_loss

    logits = torch.log(torch.tensor([[0.25, 0.75]])).repeat(4000, 1)
    loss = answers_loss(logits, torch.Generator().manual_seed(0))
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert float(loss) / 4000 == pytest.approx(entropy, rel=0.05)
    assert float(answers_loss(logits, torch.Generator().manual_seed(0))) == float(loss)


def test_gradients_that_are_no_numbers_are_refused() -> None:
    from hhtld.errors import NonFiniteError
    from hhtld.evaluation.gradients import Seen, row_costs

    with pytest.raises(NonFiniteError, match="gradients at 'm'"):
        row_costs("m", Seen(looked_up=torch.tensor([float("nan"), 1.0], dtype=torch.float64)), torch.ones(3, 2), None)
