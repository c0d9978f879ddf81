"""What people read of a night: the summary, the page beside it, and figures as SVG."""
