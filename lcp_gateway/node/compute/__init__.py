"""What turns a paid task into an answer."""
