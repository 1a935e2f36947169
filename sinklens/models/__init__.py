"""Models as sinklens takes them: loaded, with where they came from and what can be done on them."""

from .gguf import cache_folder as cache_folder
from .load import load as load
from .load import load_like as load_like
from .origin import Origin as Origin
from .origin import bos_token_id as bos_token_id
from .origin import ordinary_tokens as ordinary_tokens
from .origin import origin as origin
from .origin import require_eval_mode as require_eval_mode
from .origin import weights_hash as weights_hash
from .origin import weights_state as weights_state
