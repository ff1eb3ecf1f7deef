"""The HTTP side: OpenAI's API in front, the heart behind. No payment decisions are taken here."""
