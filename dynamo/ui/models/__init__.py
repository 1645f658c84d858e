"""The Models tab: loading other pairs, their memory, training heads."""
