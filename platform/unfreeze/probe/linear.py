"""Linear probe: how much of the classes a linear classifier reads off a frozen network's features.

Ridge's penalty is chosen by leaving out one training image after another, so that the validation images only state
the accuracy. The logistic probe's C is chosen on them, which is a little too good where they are few. The test images
stay sealed.

The column the paper calls zero-shot is this at ``11.mha`` (the last attention's output), pool "mean" and logistic, not
at the network's end: so its code has it (`apps/vit/linear_probing.py`, `apps/plots/finetuning.py`). It takes C = 1 and
states the accuracy on test images.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from unfreeze.probe.features import Features

# Ridge's penalty per training image (the features' variances are 1), strongest first.
RIDGE_PENALTIES = tuple(10.0 ** (k / 2) for k in range(8, -13, -1))
# scikit-learn's C, the inverse of the penalty, strongest first; the paper's probe has C = 1.
LOGISTIC_STRENGTHS = tuple(10.0**k for k in range(-4, 3))
_MAX_ITERATIONS = 5000  # of L-BFGS, the paper's
# A column whose deviation is below this share of its mean is constant: float32 rounds to 6e-8 of it, a sum to more.
_CONSTANT = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """One site's probe at its chosen regularisation; of equals the strongest."""

    site: str  # "embed", "6.fc2", "head"
    width: int
    num_varying: int  # features that differ between images
    train_accuracy: float
    val_correct: int
    num_val: int
    val_low: float  # 95 % Wilson interval of the validation accuracy
    val_high: float
    regularization: float  # ridge: penalty α of ‖Xw − y‖² + α‖w‖²; logistic: scikit-learn's C
    seconds: float  # of the fits, features left out

    @property
    def val_accuracy(self) -> float:
        return self.val_correct / self.num_val


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTable:
    """The probes of one model on one set."""

    results: tuple[ProbeResult, ...]  # in network order
    method: str
    pool: str
    num_train: int
    num_classes: int
    feature_seconds: float  # of the forward passes
    feature_bytes: int


def probe(
    train: Features, val: Features, *, method: str, num_classes: int, device: torch.device
) -> Iterator[ProbeResult]:
    """Fit a classifier on each site's features, in network order."""
    for site in train.columns:
        started = time.perf_counter()
        x, z, num_varying = standardise(train.at(site), val.at(site))
        if method == "ridge":
            regularization, guesses, val_guesses = fit_ridge(x, train.labels, z, num_classes=num_classes, device=device)
        else:
            regularization, guesses, val_guesses = fit_logistic(x, train.labels, z, val.labels)
        correct = int((val_guesses == val.labels).sum())
        interval = binomtest(correct, len(val.labels)).proportion_ci(method="wilson")
        yield ProbeResult(
            site=site,
            width=x.shape[1],
            num_varying=num_varying,
            train_accuracy=float((guesses == train.labels).mean()),
            val_correct=correct,
            num_val=len(val.labels),
            val_low=float(interval.low),
            val_high=float(interval.high),
            regularization=regularization,
            seconds=time.perf_counter() - started,
        )


def standardise(train: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Each image's features scaled to length 1, then each feature to mean 0 and variance 1 of the training images.

    That is the paper's preparation. Returns both as float64, and how many features vary; the others are 0.
    """
    x, z = (_unit_rows(part.astype(np.float64)) for part in (train, val))
    mean, deviation = x.mean(0), x.std(0)
    varying = deviation > _CONSTANT * np.abs(mean)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varying)
    return (x - mean) * scale, (z - mean) * scale, int(varying.sum())


def fit_ridge(
    train: np.ndarray, labels: np.ndarray, val: np.ndarray, *, num_classes: int, device: torch.device
) -> tuple[float, np.ndarray, np.ndarray]:
    """Least squares on one-hot targets, the intercept not penalised: penalty and the classes of both parts' images.

    ``train`` (N, width) has columns of mean 0. One eigendecomposition of its Gram matrix, features × features or images
    × images, whichever is smaller; each penalty then costs one matrix product, leaving out every image in turn
    included: a prediction ŷ of an image with leverage h becomes (ŷ − h y) / (1 − h) without it. The penalty is that of
    the smallest squared error so.
    """
    x, z = (torch.from_numpy(part).to(device) for part in (train, val))
    targets = F.one_hot(torch.from_numpy(labels), num_classes).double().to(device)
    prior = targets.mean(0)
    centred = targets - prior
    if x.shape[0] > x.shape[1]:
        eigenvalues, basis = torch.linalg.eigh(x.T @ x)
        rows, val_rows, goal = x @ basis, z @ basis, basis.T @ (x.T @ centred)
        leverage = rows**2
    else:
        gram = x @ x.T
        eigenvalues, basis = torch.linalg.eigh(gram)
        rows, val_rows, goal = gram @ basis, z @ (x.T @ basis), basis.T @ centred
        leverage = basis**2 * eigenvalues
    eigenvalues.clamp_(min=0)  # rounding

    def scores(images: torch.Tensor, penalty: float) -> torch.Tensor:
        return images @ (goal / (eigenvalues + penalty)[:, None]) + prior

    def error_without(penalty: float) -> float:
        rest = 1 - 1 / len(labels) - leverage @ (1 / (eigenvalues + penalty))
        return float((((targets - scores(rows, penalty)) / rest[:, None]) ** 2).sum())

    penalties = [len(labels) * penalty for penalty in RIDGE_PENALTIES]
    best = min(penalties, key=error_without)  # the first of equals: the strongest
    guesses, val_guesses = (scores(part, best).argmax(1).cpu().numpy() for part in (rows, val_rows))
    return best, guesses, val_guesses


def fit_logistic(
    train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Multinomial logistic regression by L-BFGS: C and the classes of both parts' images.

    Each starts from 0, not from the stronger penalty's solution: 1.5 × slower, but a fit's numbers are its own.
    """
    guesses, val_guesses = [], []
    for strength in LOGISTIC_STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(train, labels)
        guesses.append(model.predict(train))
        val_guesses.append(model.predict(val))
    best = int(np.argmax([(guess == val_labels).sum() for guess in val_guesses]))  # the first of equals
    return LOGISTIC_STRENGTHS[best], guesses[best], val_guesses[best]


def _unit_rows(values: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)
