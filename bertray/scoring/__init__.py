"""New files, plan, work units and parts of a scoring run."""
