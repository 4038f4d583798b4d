"""One module a file format: rows by position, damaged rows told apart."""
