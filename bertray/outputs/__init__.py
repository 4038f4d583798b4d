"""The commit protocol: claims, plans' records, the ledger, commit, publication and removal of garbage."""
