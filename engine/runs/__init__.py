"""What a run in its folder is, and how it is stopped and continued."""
