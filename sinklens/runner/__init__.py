"""How an experiment is declared, found, configured and run, and how conditions are compared."""
