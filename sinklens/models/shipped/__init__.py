"""The shelf of models that come with the package: what loading and prompting them needs."""
