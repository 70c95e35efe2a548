"""The checks of :mod:`skinverse.testing`: one function each, in files by what they are about."""

# The order of these imports is that of the checks: the simple ones come first.
# isort: off
from skinverse._checks import construction as construction
from skinverse._checks import arrays as arrays
from skinverse._checks import axes as axes
from skinverse._checks import measurements as measurements
from skinverse._checks import fitting as fitting
from skinverse._checks import refusals as refusals
from skinverse._checks import copies as copies
from skinverse._checks import isolation as isolation
from skinverse._checks import scikit_learn as scikit_learn
from skinverse._checks import invariances as invariances
from skinverse._checks import reports as reports

# isort: on
from skinverse._checks._promise import PROMISES as PROMISES
from skinverse._checks._promise import Promise as Promise
from skinverse._checks._subject import Subject as Subject
