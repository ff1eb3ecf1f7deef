"""Several workers as one gateway: the process that starts them, the channel to each, and the Redis that they share."""
