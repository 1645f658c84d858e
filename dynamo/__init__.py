"""DynaMo: dynamic multi-token sampling for Pythia (arXiv 2405.00888)."""
