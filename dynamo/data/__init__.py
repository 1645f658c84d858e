"""Text and its files: readers of other people's data, chat templates, token documents, blocks."""
