"""The public contract of reconstruction methods, checked on anybody's estimator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from skinverse._checks import PROMISES, Subject

__all__ = ["Check", "check_reconstructor", "reconstructor_checks"]


@dataclass(frozen=True)
class Check:
    """One promise of the contract, to be checked on one estimator: call it.

    Parameters
    ----------
    name : str
        Name of the promise.
    promise : str
        The promise in one sentence.
    skipped : str or None
        Why the estimator does not make the promise, as its class says in ``not_promised``; None where it
        does. The check can be called all the same.
    subject : object
        The estimator and what has been fitted for other checks.
    test : callable
        Function that tries to break the promise.

    See Also
    --------
    reconstructor_checks : Makes them.

    Examples
    --------
    >>> from skinverse import Tikhonov
    >>> from skinverse.testing import reconstructor_checks
    >>> checks = {check.name: check for check in reconstructor_checks(Tikhonov())}
    >>> checks["shapes"].promise
    "Reconstructions have the shape of the operator's images, and are finite."
    >>> checks["shapes"]()  # says nothing where the promise holds
    """

    name: str
    promise: str
    skipped: str | None
    subject: Subject = field(repr=False)
    test: Any = field(repr=False)

    def __call__(self) -> None:
        """Run the check.

        Raises
        ------
        AssertionError
            If the promise is broken; it names the promise, the estimator and the figure.
        """
        blamed = f"{self.name} ({self.subject.kind.__name__})"
        with warnings.catch_warnings():
            # Checks go to extremes, and an estimator that has hardly been trained may not converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                self.test(self.subject)
            except AssertionError as error:
                raise AssertionError(f"{blamed}: {error}") from error
            except Exception as error:
                raise AssertionError(f"{blamed}: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def reconstructor_checks(estimator: Any) -> Iterator[Check]:
    """The checks of :func:`check_reconstructor`, one by one.

    Parameters
    ----------
    estimator : object
        An unfitted instance, see :func:`check_reconstructor`.

    Yields
    ------
    Check
        A named check, to be called; its text is its name, which serves pytest as an id. All share what has
        been fitted.

    Raises
    ------
    ValueError
        If ``not_promised`` of the estimator's class names something that is no check.

    Notes
    -----
    With pytest, every check becomes a test, and what a class does not promise is seen to be skipped::

        @pytest.mark.parametrize("check", list(reconstructor_checks(MyMethod())), ids=str)
        def test_contract(check):
            if check.skipped:
                pytest.skip(check.skipped)
            check()

    Examples
    --------
    >>> from skinverse import Tikhonov
    >>> from skinverse.testing import reconstructor_checks
    >>> [check.name for check in reconstructor_checks(Tikhonov())][:3]
    ['default_constructible', 'parameters_stored', 'unknown_argument']
    """
    not_promised: Mapping[str, str] = getattr(type(estimator), "not_promised", {})
    unknown = sorted(not_promised.keys() - {promise.name for promise in PROMISES})
    if unknown:
        raise ValueError(f"not_promised: expected names of checks, got {unknown[0]!r}")
    subject = Subject(estimator)
    for promise in PROMISES:
        if promise.made_by(subject):
            yield Check(promise.name, promise.sentence, not_promised.get(promise.name), subject, promise.test)


def check_reconstructor(estimator: Any) -> None:
    """Check that an estimator keeps the public contract of reconstruction methods.

    The contract is that of :class:`~skinverse.estimators.BaseReconstructor`: images first,
    ``fit(X_true, Y_meas)``, ``predict(Y_meas, return_info=False)``, ``score``, ``save``, ``as_regressor``;
    what is refused, what is left alone, and what does not change a result. An estimator need not derive from
    a class of this package.

    Parameters
    ----------
    estimator : object
        An unfitted instance. Its operator, if it has one, is that of the problems; else they are compressive
        sensing and denoising. Trainers among its parameters are cut to one epoch; other parameters should be
        such that an estimator that has hardly been trained reconstructs something.

    Raises
    ------
    AssertionError
        At the first promise that is broken; it names the promise, the estimator and the figure.

    See Also
    --------
    reconstructor_checks : The same checks one by one, for pytest.

    Notes
    -----
    A class that cannot keep a promise says so in ``not_promised``, a mapping from the names of checks to
    the reason in one sentence. Those checks are left out here.

    Examples
    --------
    >>> from skinverse import Tikhonov
    >>> from skinverse.testing import check_reconstructor
    >>> check_reconstructor(Tikhonov())
    """
    for check in reconstructor_checks(estimator):
        if check.skipped is None:
            check()
