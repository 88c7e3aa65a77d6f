"""The command line: gin files in, run folders out."""
