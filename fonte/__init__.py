"""The source side: nothing else touches its database."""
