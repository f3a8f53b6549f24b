"""Forms of a law of a metric over compute; each with the starts that a fit needs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

SMALLEST = 1e-9  # a law's value is taken to be at least this, so that it has a logarithm


@dataclasses.dataclass(frozen=True)
class Law:
    """A form, in z = ln C less a centre."""

    name: str  # name of the form
    formula: str  # formula in C, with the names of its parameters
    n_parameters: int  # how many it has
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray]  # f(theta, z) -> values of the metric, for z of any shape
    starts: Callable[[np.ndarray, np.ndarray, int], list[np.ndarray]]  # f(z, values, sign) -> thetas to begin fits with
    named: Callable[[np.ndarray, float], Mapping[str, float]]  # f(theta, centre) -> the formula's parameters by name

    def ln(self, theta: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Logarithms of its values."""
        return np.log(np.maximum(self.evaluate(theta, z), SMALLEST))


def linear_fit(columns: Sequence[np.ndarray], values: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of least relative squared error for columns [n], and that error."""
    design = np.stack(columns, -1) / values[:, None]
    coefficients = np.linalg.lstsq(design, np.ones(len(values)), rcond=None)[0]
    return coefficients, float(((design @ coefficients - 1) ** 2).sum())


def _best(candidates: list[tuple[float, np.ndarray]]) -> list[np.ndarray]:
    return [theta for _, theta in sorted(candidates, key=lambda candidate: candidate[0])[:3]]


def _offset_starts(z: np.ndarray, values: np.ndarray, sign: int) -> list[np.ndarray]:
    """With the exponent given, the rest is linear: so the exponent alone is searched."""
    candidates = []
    for exponent in np.geomspace(0.01, 1.5, 16):
        (limit, scale), error = linear_fit([np.ones_like(z), -sign * np.exp(-exponent * z)], values)
        if scale > 0:
            candidates.append((error, np.array([limit, np.log(scale), np.log(exponent)])))
    return _best(candidates)


def _sigmoid_starts(z: np.ndarray, values: np.ndarray, sign: int) -> list[np.ndarray]:
    """With rate and midpoint given, the rest is linear."""
    candidates = []
    for rate in np.geomspace(0.05, 2, 8):
        for midpoint in np.linspace(z.min() - 6, z.max() + 3, 10):
            step = 1 / (1 + np.exp(-rate * (z - midpoint)))
            (amplitude, offset), error = linear_fit([sign * step, np.ones_like(z)], values)
            if amplitude > 0:
                candidates.append((error, np.array([np.log(amplitude), np.log(rate), midpoint, offset])))
    return _best(candidates)


def laws(sign: int) -> tuple[Law, ...]:
    """The forms, fewest parameters first; sign is 1 for a metric that rises with compute, -1 for one that falls."""
    less = "-" if sign > 0 else "+"
    return (
        Law("power", "scale * C^exponent", 2,
            lambda theta, z: np.exp(np.clip(theta[0] + theta[1] * z, -50, 50)),
            lambda z, values, sign: [np.polyfit(z, np.log(values), 1)[::-1]],
            lambda theta, centre: {"scale": float(np.exp(theta[0] - theta[1] * centre)), "exponent": float(theta[1])}),
        Law("log_linear", "intercept + slope * ln C", 2,
            lambda theta, z: theta[0] + theta[1] * z,
            lambda z, values, sign: [linear_fit([np.ones_like(z), z], values)[0]],
            lambda theta, centre: {"intercept": float(theta[0] - theta[1] * centre), "slope": float(theta[1])}),
        Law("power_with_offset", f"limit {less} scale * C^-exponent", 3,
            lambda theta, z: theta[0] - sign * np.exp(np.clip(theta[1] - np.exp(theta[2]) * z, -500, 50)),
            _offset_starts,
            lambda theta, centre: {
                "limit": float(theta[0]), "scale": float(np.exp(theta[1] + np.exp(theta[2]) * centre)),
                "exponent": float(np.exp(theta[2]))}),
        Law("sigmoid", f"{'' if sign > 0 else '-'}amplitude / (1 + exp(-rate * (ln C - midpoint))) + offset", 4,
            lambda theta, z: theta[3] + sign * np.exp(theta[0]) * (
                1 / (1 + np.exp(-np.clip(np.exp(theta[1]) * (z - theta[2]), -500, 500)))
            ),
            _sigmoid_starts,
            lambda theta, centre: {
                "amplitude": float(np.exp(theta[0])), "rate": float(np.exp(theta[1])),
                "midpoint": float(theta[2] + centre), "offset": float(theta[3])}),
    )  # fmt: skip
