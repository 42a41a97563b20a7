"""From the text of a log to records of exceptions."""
