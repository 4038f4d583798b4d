"""One module a file format: rows by position, damaged rows told apart.

`bertray/reviews/scan.py::scan_file` and `bertray/reviews/reader.py::read_rows` choose the module. CONTRIBUTING.md has
the steps to a new one.
"""
