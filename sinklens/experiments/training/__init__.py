"""Training: when sinks, spikes and frames appear."""
