"""Synthetic prescription lifecycles: plainly invented, and every one of them folds.

Read scenarios.py (what happens), course.py (when the contract lets it happen), prescribing.py (to which prescription),
then stream.py (in which order it is published) and faults.py (what can be wrong with it).
"""

from rxstore.generator.faults import GeneratedRecord as GeneratedRecord
from rxstore.generator.faults import records as records
from rxstore.generator.stream import lifecycles as lifecycles
from rxstore.generator.stream import lines as lines
from rxstore.generator.tally import Tally as Tally
