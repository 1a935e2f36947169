"""What only a machine with an accelerator can show: `python -m tests.gpu.check`."""
