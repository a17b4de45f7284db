"""Which features tell two classes apart, and how well a logistic regression on them does; which
texts fit it, which choose its C, and which test it.

Ranking and regression are as in sae-probes 0.4.2: features are ranked by the difference of the
classes' means, each feature in units of its mean when active; L2, C from ten values by AUC on the
last fifth of the training rows (at most 100). Texts of a group (a source, an author, a template)
are all on one side: a probe that knows the group by its words would otherwise be right on the test
for that reason.
"""

import warnings
from typing import Any

import numpy as np

from ...io.errors import Refused

CS = np.logspace(5, -5, 10)
_ITERATIONS = 1000
TEST_SHARE = 0.4
LEAST_GROUPS = 5
"""Groups that the texts with a class need, and those without it: there are as many folds."""
LEAST = 2
"""Texts of each class that a side needs; one where C is chosen."""


SCORES = ("auc", "f1", "accuracy")
"""Names of the scores on texts that neither ranking nor regression has seen."""


def rank(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of features, those that separate the classes best first.

    Args:
        features: [n, f], not negative, such as latents.
        labels: [n] bool.
    """
    n_active = np.maximum((features != 0).sum(axis=0), 1)
    scale = features.sum(axis=0) / n_active
    return _by_difference(features, labels, scale)


def rank_dense(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same for features of both signs, in units of their standard deviations."""
    return _by_difference(features, labels, features.std(axis=0))


def _by_difference(features: np.ndarray, labels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    difference = features[labels].mean(axis=0) - features[~labels].mean(axis=0)
    telling = np.abs(difference) / np.where(scale > 0, scale, 1.0)
    return np.argsort(-telling, kind="stable")


def n_choosing(n_train: int) -> int:
    """How many of the training rows choose C."""
    return min(n_train // 5, 100)


def split(
    labels: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """Two fifths of the texts for the test, and a part of the others to choose C: indices of the
    training texts, how many of them, the last ones, choose C, and indices of the test's.

    Args:
        labels: [n] bool, of texts in random order.
        groups: [n] whole numbers, equal for texts that must stay together; the classes' shares are
            then as even on all sides as the groups allow. None: every text for itself.
    """
    if groups is None:
        n_train = len(labels) - round(TEST_SHARE * len(labels))
        rows = np.arange(len(labels))
        return rows[:n_train], n_choosing(n_train), rows[n_train:]
    folds = scikit_learn().model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    parts = [rows for _, rows in folds.split(labels, labels, groups)]
    return np.concatenate(parts[2:]), len(parts[-1]), np.concatenate(parts[:2])


def regress(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    n_last: int | None = None,
) -> tuple[float, float, float]:
    """`SCORES` on the test's rows, of a fit on the training rows.

    Args:
        train: [n, f]
        test: [m, f]
        n_last: the last training rows, so many, choose C; None: `n_choosing`, of rows in random
            order.
    """
    sklearn = scikit_learn()
    linear_model, metrics = sklearn.linear_model, sklearn.metrics
    train, test = in_row_space(train.astype(np.float64), test.astype(np.float64))
    first = len(train) - (n_choosing(len(train)) if n_last is None else n_last)

    def fitted(rows: slice, c: float):
        model = linear_model.LogisticRegression(C=c, max_iter=_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # separable classes at the largest C do not converge
            return model.fit(train[rows], labels[rows])

    def score(c: float) -> float:
        chances = fitted(slice(first), c).predict_proba(train[first:])[:, 1]
        return float(metrics.roc_auc_score(labels[first:], chances))

    model = fitted(slice(None), max(CS, key=score))  # of equal ones the first, as in sae-probes
    chances, predicted = model.predict_proba(test)[:, 1], model.predict(test)
    return (
        float(metrics.roc_auc_score(test_labels, chances)),
        float(metrics.f1_score(test_labels, predicted, average="weighted")),
        float(metrics.accuracy_score(test_labels, predicted)),
    )


def in_row_space(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features turned into the space that the training rows span, which an L2 fit does not leave:
    the same regression, with as many features as rows."""
    if train.shape[1] <= train.shape[0]:
        return train, test
    _, values, axes = np.linalg.svd(train, full_matrices=False)
    axes = axes[values > values[0] * 1e-12]
    return train @ axes.T, test @ axes.T


def scikit_learn() -> Any:
    """scikit-learn, with the modules that probing uses.

    Raises:
        ValueError: it is not installed; the sentence has the command.
    """
    try:
        import sklearn.linear_model
        import sklearn.metrics
        import sklearn.model_selection
    except ImportError as error:
        raise Refused(
            "probing needs scikit-learn: `pip install 'hfsae[probe]'` or `pip install scikit-learn`"
        ) from error
    return sklearn
