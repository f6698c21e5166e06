"""The HTTP views and the page."""
