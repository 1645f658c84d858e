"""The Explore tab: speed and quality over back-off thresholds."""
