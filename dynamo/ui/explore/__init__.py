"""The Explore tab: what the back-off threshold buys and costs."""
