"""Geometry: the frame of reference that attention spans, and how alike token states are.

Follows Ruscio et al. 2025 (2508.02546), who see attention weights as the edges of a graph whose
anchors (sinks) are a frame of reference: centralised, distributed or bidirectional. It describes
attention. That a frame is there does not say that the model needs it: `bos_replacement` and
`sink_head_ablation` take anchors away. The paper gives no rule for its three types, so that scores
and thresholds are ours; where its published code departs from what it says, the rows named
`published` follow the code. Token states, which attention mixes, are the subject of
`token_synchronisation` (Liu et al. 2026, 2602.11534; Barbero et al. 2025, 2504.02732).
"""
