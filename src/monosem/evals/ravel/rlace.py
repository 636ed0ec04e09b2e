"""R-LACE: the k directions without which a linear classifier can't tell an attribute's values apart.

Source: Ravfogel et al. 2022, "Linear Adversarial Concept Erasure" (arXiv 2201.12091), sections 3 and 4: a game between
a linear softmax classifier of (I - P) x and P, which is relaxed from the projections of rank k to their convex hull,
the Fantope {P: 0 <= eigenvalues <= 1, trace P = k}.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from monosem.evals.ravel.edits import check_size
from monosem.types import UserError

FIT = 50  # steps of the classifier that a finished subspace is judged by
RIDGE = 1e-9  # of the classifier's curvature, relative to the variance of the activations
RATE = 0.2  # length of the projection's first step, times sqrt(size), in the Frobenius norm


def rlace(x: Tensor, labels: Sequence[object], size: int, seed: int = 0, rounds: int = 24, inner: int = 5) -> Tensor:
    """Return orthonormal rows R [size, d_in], such that labels [n] can't be read linearly from x - x R^T R.

    x: [n, d_in]. rounds: steps of the projection, on a random half of the rows each; inner: steps of the classifier
    before each. The game starts from the largest directions of the class means. For size = classes - 1 that is all of
    them and already the optimum (Belrose et al. 2023, arXiv 2306.03819, theorem 3.1): no game is played. A larger size
    adds what the game finds outside, that is what half the rows have by chance. For a smaller one the game's outcome is
    taken if it leaves a classifier a higher loss than the start does. float32, on x's device.
    Raises UserError for fewer than two labels, or a size that isn't from 1 to d_in.
    """
    check_size(size, x.shape[1])
    values, numbers = np.unique(np.asarray(labels), return_inverse=True)
    if len(values) < 2:
        raise UserError(f"labels: {len(values)} different value(s); a subspace needs at least 2 to tell apart")
    x, y = x.double() - x.double().mean(0), torch.from_numpy(numbers).to(x.device)
    means = _class_means(x, y)
    if len(means) == size:
        return means.float()
    kept = means[:size].T @ means[:size]
    rest = torch.eye(len(kept)).to(x) - kept
    start = kept + rest * max(0, size - len(means)) / max(1, len(kept) - len(means))
    played = _play(x, y, start, size, seed, rounds, inner)
    if len(means) < size:
        return _top(2 * kept + rest @ played @ rest, size).float()
    return max(means[:size], _top(played, size), key=lambda R: remaining_loss(x, y, R)).float()


def remaining_loss(x: Tensor, y: Tensor, R: Tensor) -> float:
    """Return the cross-entropy (nats) of a classifier that is fitted to x - x R^T R; x: [n, d], centred; y: int64."""
    left = x - (x @ R.T) @ R
    W = _fit(left, y, torch.zeros(x.shape[1], int(y.max()) + 1).to(x), FIT)
    return float(cross_entropy(left @ W + _priors(y, W.shape[1]), y))


def project(P: Tensor, size: int) -> Tensor:
    """Return the nearest matrix of the Fantope of trace `size` to a symmetric P [d, d].

    Eigenvalues become clip(value - shift, 0, 1), the shift found by bisection (Vu et al. 2013, lemma 4.1).
    """
    values, vectors = torch.linalg.eigh(P)
    exact = values.double().cpu().numpy()
    low, high = exact.min() - 1, exact.max()  # where the sum is d and 0
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if np.clip(exact - shift, 0, 1).sum() > size else (low, shift)
    clipped = torch.from_numpy(np.clip(exact - (low + high) / 2, 0, 1)).to(values)
    return (vectors * clipped) @ vectors.T


def _play(x: Tensor, y: Tensor, P: Tensor, size: int, seed: int, rounds: int, inner: int) -> Tensor:
    """Return P after alternating steps of classifier and projection."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.zeros(x.shape[1], int(y.max()) + 1).to(x)
    for number in range(rounds):
        rows = torch.randperm(len(x), generator=generator)[: (len(x) + 1) // 2].to(x.device)
        part, left = x[rows], x[rows] - x[rows] @ P
        W = _fit(left, y[rows], W, inner)
        # the loss of (I - P) x: its gradient by P is minus the symmetric part of x^T error W^T
        gradient = -part.T @ (_error(left, y[rows], W) @ W.T)
        gradient = gradient + gradient.T
        length = RATE * size**0.5 * (1 - number / rounds)
        P = project(P + length * gradient / gradient.norm().clamp_min(1e-30), size)
    return P


def _fit(x: Tensor, y: Tensor, W: Tensor, steps: int) -> Tensor:
    """Return the weights W [d, classes] of a softmax regression after some steps, on x [n, d].

    The curvature of the loss is at most half the covariance of x (Böhning 1992), whatever W is; steps by its inverse
    never raise the loss and don't depend on the scale of any direction: those of residual streams differ by orders of
    magnitude. The intercepts are the logarithms of the classes' shares.
    """
    covariance = x.T @ x / len(x)
    ridge = RIDGE * covariance.diagonal().sum() + torch.finfo(x.dtype).tiny
    bound = covariance / 2 + ridge * torch.eye(len(covariance)).to(x)
    factor = torch.linalg.cholesky(bound)
    for _ in range(steps):
        W = W - torch.cholesky_solve(x.T @ _error(x, y, W) + ridge * W, factor)
    return W


def _error(x: Tensor, y: Tensor, W: Tensor) -> Tensor:
    """Return the gradient of the mean loss by the logits, [n, classes]."""
    chances = torch.softmax(x @ W + _priors(y, W.shape[1]), dim=1)
    return (chances - one_hot(y, W.shape[1])) / len(y)


def _priors(y: Tensor, classes: int) -> Tensor:
    return torch.bincount(y, minlength=classes).clamp_min(0.5).double().log()


def _class_means(x: Tensor, y: Tensor) -> Tensor:
    """Return orthonormal directions of the class means, each weighted by its share, the largest first: [m, d]."""
    onehot = one_hot(y).to(x)
    means = (onehot.T @ x) / onehot.sum(0).sqrt()[:, None]
    _, sizes, directions = torch.linalg.svd(means, full_matrices=False)
    return directions[sizes > 1e-5 * sizes[0]]


def _top(P: Tensor, size: int) -> Tensor:
    """Return the leading eigenvectors of P as orthonormal rows [size, d]."""
    return torch.linalg.eigh(P).eigenvectors[:, -size:].T.contiguous()
