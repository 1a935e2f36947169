"""Training: when sinks, drained values, spikes and frames appear.

    Gu et al. 2025 (2410.10781)       sinks appear once a model is optimised well enough
    Guo et al. 2024 (2410.13835)      sinks, small values and spikes of position 0 arise together
    Ruscio et al. 2025 (2508.02546)   reference frames form early in training

The papers show curves over the checkpoints of one training run. What is added here is an onset with
an interval, the order of several, and controls at the last checkpoint. Intervals are over prompts:
they say how well the curves of this run are known, not what another seed would do. An order in time
is no cause.
"""
