"""From converted set to batches: random access (source), crops, Grain (pipeline), the first step on the device."""
