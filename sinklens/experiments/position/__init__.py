"""Absolute position: what attention knows of it, and from where.

- arXiv 2606.06160 names the two sources, the causal mask and what position 0 feeds into the
  residual stream, and reports that replacing BOS removes 40 % at early queries. Only its abstract
  could be read, which gives no formulas, so all estimators here are a reconstruction.
- arXiv 2603.05498 finds the vectors at position 0 nearly parallel for different first tokens.

The line can show how much of the attention logits, averaged over prompts, is not explained by
relative position, whether heads read position 0, and what edits of position 0 take away. It cannot
show what attention in a single prompt owes to position, nor whether the model needs what it knows.
"""
