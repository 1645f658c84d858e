"""Shared by every package: options, validation, files, statistics, threads, processes, memory."""
