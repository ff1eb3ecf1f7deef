"""lcp-gateway: an OpenAI-compatible gateway that buys answers over the Lightning Network."""
