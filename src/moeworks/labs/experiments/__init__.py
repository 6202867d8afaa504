"""The labs, a file each."""
