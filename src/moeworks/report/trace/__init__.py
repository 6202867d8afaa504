"""The report of a routing trace."""
