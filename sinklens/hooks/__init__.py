"""Interventions as TransformerLens hook functions.

Each function here returns an `Intervention`, whose `fwd_hooks` go straight into
`model.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks)`. The hook functions themselves take
`(activation, hook)` and return a new tensor; they can be imported and used alone.
"""

from ..core.labels import head_label as head_label
from .bos import embedding_outputs as embedding_outputs
from .bos import mean_embedding as mean_embedding
from .bos import replace_bos_embedding as replace_bos_embedding
from .heads import ablate_heads as ablate_heads
from .heads import drop_edge as drop_edge
from .heads import drop_edge_unnormalised as drop_edge_unnormalised
from .heads import mean_heads as mean_heads
from .heads import resample_heads as resample_heads
from .heads import subtract_reads as subtract_reads
from .heads import zero_heads as zero_heads
from .intervention import Intervention as Intervention
from .intervention import redirect_position as redirect_position
from .intervention import replace_position as replace_position
from .intervention import rescale_position as rescale_position
from .intervention import together as together
from .position0 import patch_position0 as patch_position0
from .spikes import replace_entries as replace_entries
from .spikes import shift_entries as shift_entries
