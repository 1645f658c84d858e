"""What every package may use: options, validation, files, statistics, threads, processes, memory."""
