"""Every file format, one a file."""
