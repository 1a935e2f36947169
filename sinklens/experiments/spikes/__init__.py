"""Spikes (massive activations): where they are, what writes them, and how they relate to sinks.

Papers: Sun et al. 2024 (2402.17762) define massive activations and zero them; Owen et al. 2025
(2503.22329) read the definition otherwise and treat position 0 apart; Sun, Canziani, LeCun and Zhu
2026 (2603.05498) ask how a spike becomes a sink, by training models that have one without the
other. The experiments here find and intervene on the spikes of one trained model: they show what it
needs once it is trained, not what training without spikes would give.
"""
