"""Between visitors and the page: limits, the request guard, stored runs, ZeroGPU."""
