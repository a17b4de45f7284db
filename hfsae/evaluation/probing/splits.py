"""Which texts fit a probe, which choose its C, and which test it.

Texts of a group (a source, an author, a template) are all on one side: a probe that knows the
group by its words would otherwise be right on the test for that reason.
"""

from typing import NamedTuple

import numpy as np

from .regression import n_choosing, scikit_learn

TEST_SHARE = 0.4
LEAST_GROUPS = 5
"""Groups that the texts with a class need, and those without it: there are as many folds."""
_LEAST = 2  # texts of each class on each side


class Split(NamedTuple):
    """Indices of texts."""

    train: np.ndarray
    """in the order of fitting: the last ones choose C"""
    n_choosing: int
    """of the training texts, those that choose C"""
    test: np.ndarray

    def is_usable(self, labels: np.ndarray) -> bool:
        """Whether each side has texts with the class, and texts without it."""
        sides = labels[self.train], labels[self.test], labels[self.train[-self.n_choosing :]]
        leasts = _LEAST, _LEAST, 1
        counts = (min(side.sum(), (~side).sum()) for side in sides)
        return all(count >= least for count, least in zip(counts, leasts, strict=True))


def split(labels: np.ndarray, groups: np.ndarray | None, seed: int) -> Split:
    """Two fifths of the texts for the test, and a part of the others to choose C.

    Args:
        labels: [n] bool, of texts in random order.
        groups: [n] whole numbers, equal for texts that must stay together; the classes' shares are
            then as even on all sides as the groups allow. None: every text for itself.
    """
    if groups is None:
        n_train = len(labels) - round(TEST_SHARE * len(labels))
        rows = np.arange(len(labels))
        return Split(rows[:n_train], n_choosing(n_train), rows[n_train:])
    folds = scikit_learn().model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    parts = [rows for _, rows in folds.split(labels, labels, groups)]
    return Split(np.concatenate(parts[2:]), len(parts[-1]), np.concatenate(parts[:2]))
