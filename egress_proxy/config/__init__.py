"""Text from the administrator becomes frozen values."""
