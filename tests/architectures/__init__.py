"""Models of many architectures, beside plain Hugging Face code."""
