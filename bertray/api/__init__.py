"""The Python API: one function a verb, and models that label or embed texts in this process."""
