"""Files and stores: reading, writing once, publishing, and named points to die at in tests."""
