"""Published rivals that learn, one a file, under the names of their published weights."""
