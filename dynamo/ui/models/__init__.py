"""The Models tab: loading other pairs, what they take, training heads."""
