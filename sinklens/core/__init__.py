"""What everything stands on: errors, the model's protocol, seeds, labels and files on disk."""
