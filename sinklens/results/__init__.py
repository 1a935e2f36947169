"""Results: what an experiment found, how it is kept on disk, shown, drawn and reported."""

from .result import Array as Array
from .result import Diagnosis as Diagnosis
from .result import ExperimentResult as ExperimentResult
from .result import assemble as assemble
from .result import describe as describe
from .result import identity as identity
