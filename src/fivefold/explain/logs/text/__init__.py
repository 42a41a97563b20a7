"""From the bytes of a log to its lines: encodings, mail and web pages undone, wrapped lines joined."""
