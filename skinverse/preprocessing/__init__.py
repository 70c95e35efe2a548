"""From the counts of a detector to line integrals: functions of arrays for computed tomography."""

from skinverse.preprocessing._detector import remove_rings, remove_zingers
from skinverse.preprocessing._line_integrals import correct_beam_hardening, minus_log
from skinverse.preprocessing._phase import retrieve_phase
from skinverse.preprocessing._rotation_axis import find_rotation_axis

__all__ = [
    "correct_beam_hardening",
    "find_rotation_axis",
    "minus_log",
    "remove_rings",
    "remove_zingers",
    "retrieve_phase",
]
