"""Absolute position: what attention knows of it, and from where.

- Ruscio et al. 2026 (2606.06160) name the two sources, the causal mask and what position 0 feeds
  into the residual stream, and report that replacing BOS removes 40 % at early queries. Only the
  abstract could be read, which gives no formulas, so all estimators here are a reconstruction.
- Wu et al. 2025 (2502.01951) derive from the causal mask that the product of all layers' attention
  ends on the first token; Herasimchyk et al. 2026 (2602.16837) weigh the residual in.
- Sun et al. 2026 (2603.05498) find the vectors at position 0 nearly parallel for different first
  tokens.
- Ruscio et al. 2025 (2410.18067) read attention as a signal over positions. Random logits of the
  same temperature give correlations as large as they report, and stand beside every number.

The line can show how much of the attention logits, averaged over prompts, is not explained by
relative position, whether heads read position 0, and what edits of position 0 take away. It cannot
show what attention in a single prompt owes to position, nor whether the model needs what it knows.
"""
