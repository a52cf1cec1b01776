"""From converted set to batches: random access (source), crops (views), Grain (pipeline), first step on device."""
