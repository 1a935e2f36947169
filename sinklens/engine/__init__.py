"""Run interventions over prompts and measure; the only place that loops over forward passes.

One batch of prompts at a time: a clean forward, then the interventions, so that only one batch of
clean values is held. Three optimisations leave the results unchanged, one module each; `shortcuts`
determines which of them a model allows:

- `forward`: an intervention in block k costs a run from block k on; logits are computed only where
  they are read; patterns are materialised only where a hook needs them, large ones some rows at a
  time (`attention`);
- `verify`: interventions that start at the same block share a forward pass, and each is verified,
  since one that had no effect on its activation is an error;
- `metric_reader`: metrics are read a slice of predictions at a time.

`read` reads attention under an intervention, `screening` estimates effects from gradients, and
`resume` keeps finished work on disk.

How many prompts and interventions a forward holds follows from shapes alone, so that the same
command gives the same bytes (`sizes`).
"""

from .evaluate import Evaluation as Evaluation
from .evaluate import evaluate as evaluate
from .progress import Plan as Plan
from .progress import announce as announce
from .progress import announced_to as announced_to
from .progress import duration as duration
from .progress import forwards_bar as forwards_bar
from .progress import is_awaited as is_awaited
from .progress import run_bar as run_bar
from .progress import show_progress as show_progress
from .read import Reading as Reading
from .read import finished_or as finished_or
from .read import read_under as read_under
from .resume import kept as kept
from .resume import kept_in as kept_in
from .resume import section as section
from .shortcuts import shortcuts as shortcuts
from .sizes import choose_sizes as choose_sizes
from .sizes import default_memory as default_memory
from .timing import seconds_of_pass as seconds_of_pass
from .user_hooks import has_own_hooks as has_own_hooks
from .user_hooks import own_hook_points as own_hook_points
