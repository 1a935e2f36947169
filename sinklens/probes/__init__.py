"""Read-only hooks that reduce what they see while the model runs.

A probe has `fwd_hooks` for `model.run_with_hooks`, `compute()` for what it has seen since the last
`reset()`. It keeps one small value a prompt, layer and head, never a pattern of each prompt.
"""

from ..functional.massive import Criterion as Criterion
from .base import Probe as Probe
from .channel_energy import ChannelShares as ChannelShares
from .channel_energy import GatedReads as GatedReads
from .heads import HeadMeans as HeadMeans
from .heads import HeadOutputs as HeadOutputs
from .heads import SinkReads as SinkReads
from .norms import ResidualNorms as ResidualNorms
from .norms import ValueNorms as ValueNorms
from .positions import PositionValues as PositionValues
from .residual_trace import PeakTrace as PeakTrace
from .residual_trace import PositionPeaks as PositionPeaks
from .residual_trace import Written as Written
from .sink_logit import LogitGaps as LogitGaps
from .sinks import KeyMass as KeyMass
from .sinks import SinkScores as SinkScores
from .sinks import SinkWeights as SinkWeights
from .sinks import sink_scores as sink_scores
from .spikes import ResidualPeaks as ResidualPeaks
from .stream_entries import Entries as Entries
from .stream_entries import StreamEntries as StreamEntries
