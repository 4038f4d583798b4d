"""Where outputs live and how they become visible: store, plan, receipts, ledger. Nothing else writes outputs."""
