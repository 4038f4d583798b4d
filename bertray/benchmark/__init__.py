"""Speed beside other ways of labelling a file and beside the machine's limit, and checks of a device; without Ray."""
