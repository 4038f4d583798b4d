"""Where outputs live and how they become visible: store, plan, receipts, ledger, publish. Nothing else writes outputs."""
