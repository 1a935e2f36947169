"""The mathematics: tensors in, tensors out; nothing here knows a model."""
