"""Results: data, verdicts, sentences, tables, figures, files and reports."""

from .diagnosis import Diagnosis as Diagnosis
from .record import Array as Array
from .result import ExperimentResult as ExperimentResult
from .result import identity as identity
from .wording import describe as describe
