"""The co-occurrence table behind the mask: counted in memory or on disk, stored as a trie."""
