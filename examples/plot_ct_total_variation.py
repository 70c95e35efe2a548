"""
CT: filtered back-projection and total variation
=================================================

Thirty views are few: filtered back-projection shows streaks, and total variation does not. An ordinary grid
search finds its weight ``lam``.
"""

# %%
# The problem consists of phantoms, their noisy sinograms and the operator between them. Two of the six
# phantoms are kept for the end.
from sklearn.model_selection import GridSearchCV, train_test_split

from skinverse import FilteredBackProjection, TotalVariationRecon
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("ct", n_samples=6, size=64, noise=0.05, random_state=0)
X_train, X_test, Y_train, Y_test = train_test_split(images, data, test_size=2, random_state=0)

# %%
# Images come first, measurements second, so the search maximises the mean PSNR as it is.
search = GridSearchCV(TotalVariationRecon(A), {"lam": [0.1, 0.3, 1.0]}, cv=2, error_score="raise")
search.fit(X_train, Y_train)
print(search.best_params_)

# %%
fbp = FilteredBackProjection(A, filter="hann").fit()
reconstructions = {"FBP": fbp.predict(Y_test), "TV": search.predict(Y_test)}
ReconstructionDisplay.from_predictions(X_test, reconstructions, Y_meas=Y_test)
