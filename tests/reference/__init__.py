"""Second implementations that the package is tested against; they share no code with it."""
