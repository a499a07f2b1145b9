"""Examples that run: python -m pm.examples.NAME."""
